"""
The simulated runtime module, in the behaviour of three generations.

It runs under Python 3.7 and needs NumPy alone. Models run in the device's own process; which generation this is, the
description of the simulated host says. Native messages go to C's standard output, as the real ones do, and stay in its
buffer when that is a pipe.
"""

import atexit
import ctypes
import enum
import json
import mmap
import numbers
import os
import re
import subprocess
import tempfile
import threading
import time
import weakref

import numpy as np

_FOLDER = os.environ["ASCEND_SIMULATED_HOST"]
with open(os.path.join(_FOLDER, "host.json"), encoding="utf-8") as _file:
    _HOST = json.load(_file)
if "ASCEND_TOOLKIT_HOME" not in os.environ:
    raise ImportError("libascendcl.so: cannot open shared object file: No such file or directory")

_GENERATION = _HOST["generation"]
_V1, _V2, _V3 = (name == _GENERATION for name in ("V1", "V2", "V3"))
_COUNT = len(_HOST["devices"])
# A file system in memory, where there is one.
_SHARED = "/dev/shm"  # noqa: S108 - files there have no name
if not os.path.isdir(_SHARED):
    _SHARED = os.path.join(_FOLDER, "state")
_LIBC = ctypes.CDLL(None)
# Functions of this one are called with the interpreter's lock held.
_LOCKED = ctypes.PyDLL(None)
_TEXTS = {-1: "ACL: general failure", 1: "ACL: invalid parameter", 2: "ACL: memory allocation fail"}
_TEXTS.update({3: "ACL: runtime failure", 1004: "Invalid parameter", 107001: "Error code unknown"})


def _native(text):
    _LIBC.puts(text.encode())


def _error(code):
    return RuntimeError("[%d][%s] " % (code, _TEXTS.get(code, "Error code unknown")))


def _require(fits, what):
    # The native functions convert nothing: a path is text, a device an unsigned number.
    if not fits:
        raise TypeError("%s: incompatible function arguments" % what)


class dtype(enum.IntEnum):
    float32 = 0
    float16 = 1
    int8 = 2
    int32 = 3
    uint8 = 4
    int16 = 6
    uint16 = 7
    uint32 = 8
    int64 = 9
    uint64 = 10
    double = 11
    bool = 12
    undefined = -1


class type(enum.IntEnum):
    memory_host = 0
    memory_device = 1
    memory_dvpp = 2


class session_options(object):
    __slots__ = ("acl_json_path", "log_level", "loop")

    def __init__(self):
        self.loop, self.log_level, self.acl_json_path = 1, 2, ""


class tensor_desc(object):
    def __init__(self, facts):
        self.name, self.datatype, self.format = facts["name"], dtype(facts["datatype"]), facts["format"]
        self.shape, self.size, self.realsize = list(facts["shape"]), facts["size"], facts["realsize"]


class sumary(object):
    def __init__(self, times):
        self.exec_time_list = times


class Tensor(object):
    """A copy of the memory behind an array, whatever its strides say."""

    def __init__(self, buffer):
        array = np.asarray(memoryview(buffer))
        known = array.dtype.name in _NUMPY and array.dtype.isnative
        # Of a type it does not know it takes as many bytes as there are elements.
        self._numpy = array.dtype if known else np.dtype(np.uint8)
        self._bytes = _memory_of(array, array.size * self._numpy.itemsize)
        self.shape = list(array.shape)
        self.device = -1
        self.type = type.memory_host

    @property
    def dtype(self):
        return dtype[_NUMPY[self._numpy.name]]

    def to_device(self, device_id):
        if not 0 <= device_id < _COUNT:
            bigger = "bigger than or equal to" if _V3 else "bigger than"
            _native("[ERROR] deviceId(%d) is %s deviceCount(%d)" % (device_id, bigger, _COUNT))
            raise _error(1004)
        self.device, self.type = device_id, type.memory_device

    def to_host(self):
        start = time.time()
        self.device, self.type = -1, type.memory_host
        _MemorySummary._d2h.append(1e3 * (time.time() - start))

    def __array__(self, dtype=None, copy=None):
        if self.type != type.memory_host:
            raise RuntimeError("tensor is in npu. can't convert to numpy array")
        return np.frombuffer(self._bytes, self._numpy).reshape(self.shape)

    @classmethod
    def _of_device(cls, array, device_id):
        tensor = cls.__new__(cls)
        tensor._bytes, tensor._numpy, tensor.shape = array.data, array.dtype, list(array.shape)
        tensor.device, tensor.type = device_id, type.memory_device
        return tensor


_NUMPY = {"float32": "float32", "float16": "float16", "int8": "int8", "int32": "int32", "uint8": "uint8"}
_NUMPY.update({"int16": "int16", "uint16": "uint16", "uint32": "uint32", "int64": "int64", "uint64": "uint64"})
_NUMPY.update({"float64": "double", "bool": "bool"})


def _memory_of(array, size):
    """Return the memory from the first element on; what lies beyond the last one's is anybody's, here zeros."""
    if not array.size:
        return b""
    steps = zip(array.strides, array.shape)
    reached = array.itemsize + sum(stride * (count - 1) for stride, count in steps if stride > 0)
    return ctypes.string_at(array.ctypes.data, min(reached, size)).ljust(size, b"\0")


def batch(inputs, keep_dims=False):
    arrays = [np.array(item) for item in inputs]
    return Tensor(np.stack(arrays) if keep_dims else np.concatenate(arrays))


class _Device(object):
    """The process that is the device, one for each of this process's devices."""

    _open = {}

    def __init__(self, number):
        self.number = number
        env = dict(os.environ, PYTHONPATH=_HOST["project"])
        command = [_HOST["device_python"], "-m", "support.simulator.device", _FOLDER, str(number)]
        # From the project's folder: -m finds what is in the working directory first.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=env, cwd=_HOST["project"], **pipes)
        # One request at a time, whichever thread it comes from.
        self._turn = threading.Lock()

    @classmethod
    def get(cls, number):
        if number not in cls._open:
            if not cls._open:
                _native("[INFO] acl init success")
            cls._open[number] = cls(number)
            _native("[INFO] open device %d success" % number)
            if _V3:
                _native("[INFO] create new context")
        return cls._open[number]

    def ask(self, locked=False, **request):
        with self._turn:
            try:
                self._process.stdin.write((json.dumps(request) + "\n").encode())
                self._process.stdin.flush()
            except OSError:
                self._abort()
            answer = self._locked_line() if locked else self._line()
        if not answer:
            self._abort()
        return json.loads(answer)

    def _line(self):
        return self._process.stdout.readline().decode()

    def _locked_line(self):
        # Nothing else in this process runs until the device answers.
        descriptor, line, piece = self._process.stdout.fileno(), b"", ctypes.create_string_buffer(4096)
        while not line.endswith(b"\n"):
            count = _LOCKED.read(descriptor, piece, len(piece))
            if count <= 0:
                return ""
            line += piece.raw[:count]
        return line.decode()

    def _abort(self):
        _native("[ERROR] device %d: terminate called without an active exception" % self.number)
        os.abort()

    @classmethod
    def close_all(cls):
        for device in cls._open.values():
            device._process.stdin.close()
            device._process.wait()
            device._process.stdout.close()
        cls._open.clear()


atexit.register(_Device.close_all)


class _MemorySummary(object):
    _h2d, _d2h = [], []

    @property
    def H2D_time_list(self):
        return list(self._h2d)

    @property
    def D2H_time_list(self):
        return list(self._d2h)

    def reset(self):
        del self._h2d[:], self._d2h[:]


class _BaseTensor(object):
    """Memory that belongs to somebody else."""

    def __init__(self, ptr, nbytes):
        self.buf, self.size = ptr, nbytes


class _InferOptions(object):
    def __init__(self):
        self.output_dir, self.auto_dym_shape, self.auto_dym_dims, self.out_format = "", False, False, ""
        self.pure_infer_mode, self.output_names, self.shapes_list = False, [], []


class InferenceSession(object):
    """A model loaded on a device."""

    _finalized = False

    def __init__(self, *arguments):
        _require(len(arguments) == 3, "InferenceSession")
        model_path, device_id, options = arguments
        _require(isinstance(model_path, str) and isinstance(options, session_options), "InferenceSession")
        _require(isinstance(device_id, numbers.Integral) and device_id >= 0, "InferenceSession")
        if InferenceSession._finalized:
            raise _error(-1)
        self._session_options = options
        self._thread = threading.get_ident()
        if _V3:
            _check_v3(model_path, device_id, options)
        if device_id >= _COUNT:
            if not _V3:
                _native("[ERROR] acl open device %d failed" % device_id)
            _native("[ERROR] create context failed. ret=107001" if _V3 else "[ERROR] SetDevice failed. ret=107001")
            raise _error(107001)
        self._device = _Device.get(device_id)
        self._load(model_path)
        self._zero, self._times, self._since = time.time(), [], time.perf_counter()

    def _load(self, path):
        answer = self._device.ask(op="load", model=os.path.abspath(path), device=self._device.number)
        if not answer["ok"]:
            for line in answer["log"]:
                _native(line)
            _native("[ERROR] load model from file failed, model file is %s" % path)
            _native("[WARN] Check failed:processModel->LoadModelFromFile(modelPath), ret:1")
            raise _error(1)
        _native("[INFO] load model %s success" % path)
        _native("[INFO] create model description success")
        self._model = answer["model"]
        self._inputs = [tensor_desc(facts) for facts in answer["inputs"]]
        self._outputs = [tensor_desc(facts) for facts in answer["outputs"]]
        self._files = _Files(self._inputs, self._outputs)

    def get_inputs(self):
        return list(self._inputs)

    def get_outputs(self):
        return list(self._outputs)

    def options(self):
        return self._session_options

    def set_staticbatch(self):
        self._check_usable()

    def sumary(self):
        return sumary(list(self._times))

    def reset_sumaryinfo(self):
        del self._times[:]

    def run(self, out_names, inputs):
        _require(all(isinstance(name, str) for name in out_names), "run")
        self._set_inputs(inputs)
        self._execute(self._session_options.loop)
        return self._get_outputs(out_names)

    def _set_inputs(self, inputs):
        self._check_usable()
        named = isinstance(inputs, dict)
        values = list(inputs.values()) if named else list(inputs)
        kinds = (Tensor,) if named or _V1 else (Tensor, _BaseTensor)
        _require(any(all(isinstance(value, kind) for value in values) for kind in kinds), "run")
        tensors = self._in_order(inputs) if named else values
        self._check_inputs(tensors)
        start, self._since = time.time(), time.perf_counter()
        self._files.write([_bytes_of(tensor) for tensor in tensors])
        _MemorySummary._h2d.append(1e3 * (time.time() - start))

    def _in_order(self, inputs):
        if len(inputs) != len(self._inputs):
            _native("[ERROR] intensors size:%d need size:%d not match" % (len(inputs), len(self._inputs)))
            raise _error(-1)
        for place, desc in enumerate(self._inputs):
            if desc.name not in inputs:
                _native("[ERROR] intensors i:%d name:%s not find" % (place, desc.name))
                raise _error(-1)
        return [inputs[desc.name] for desc in self._inputs]

    def _get_outputs(self, out_names):
        names = [desc.name for desc in self._outputs]
        for name in out_names:
            if name not in names:
                _native("[ERROR] outnames %s not valid" % name)
                raise _error(-1)
        outputs = self._files.read(self._device.number)
        return [outputs[names.index(name)] for name in out_names]

    def _execute(self, loop):
        for number in range(1, loop + 1):
            start = 1e3 * (time.time() - self._zero)
            where = {"input": self._files.input, "output": self._files.output, "since": self._since}
            answer = self._device.ask(locked=not _V1, op="run", model=self._model, **where)
            if not answer["ok"]:
                for line in answer["log"]:
                    _native(line)
                raise _error(-1)
            compute = answer["compute_ms"]
            # Single precision, and relative to the session: the differences get coarse as it ages.
            pair = (float(np.float32(start)), float(np.float32(start + compute)))
            self._times.append(pair if _V3 else compute)
            if loop > 1:
                _LIBC.printf(b"\rloop inference exec: (%d/%d)", number, loop)

    def _check_usable(self):
        if InferenceSession._finalized or self._model is None:
            raise _error(-1)
        if not _V3 and threading.get_ident() != self._thread:
            _native("[ERROR] context is null")
            raise RuntimeError("[107002][Error code unknown] ")

    def _check_inputs(self, tensors):
        if len(tensors) != len(self._inputs):
            _native("[WARN] intensors in:%d need:%d not match" % (len(tensors), len(self._inputs)))
            raise _error(3 if _V3 else -1)
        for place, (tensor, desc) in enumerate(zip(tensors, self._inputs)):
            size = memoryview(_bytes_of(tensor)).nbytes
            if size != desc.realsize:
                check = "[ERROR] %s i:%d name:%s in size:%d needsize:%d not match"
                _native(check % ("check" if _V3 else "Check", place, desc.name, size, desc.realsize))
                _native("[ERROR] Check InVector failed ret:-1")
                raise _error(-1)

    def __del__(self):
        if getattr(self, "_model", None) is not None and self._device.number in _Device._open:
            self._device.ask(op="unload", model=self._model)
            _native("[INFO] unload model success, model Id is %d" % (self._model + 1))
            self._model = self._files = None


def _finalize(session=None):
    if session is not None:
        session.__del__()
    for number in sorted(_Device._open):
        _native("[INFO] end to reset device%s %d" % ("" if _V3 else " is", number))
    _Device.close_all()
    _native("[INFO] end to finalize acl")
    InferenceSession._finalized = True


class _Memory(object):
    """Memory that this process and the device map: a file without a name, so that nobody who is killed leaves it."""

    def __init__(self, size):
        self._file, name = tempfile.mkstemp(prefix="tensors-", dir=_SHARED)
        os.unlink(name)
        os.ftruncate(self._file, max(size, 1))
        self.map = mmap.mmap(self._file, 0)
        self.path, self.size = "/proc/%d/fd/%d" % (os.getpid(), self._file), size

    def __del__(self):
        os.close(self._file)


class _Files(object):
    """Where tensors pass to the device and back."""

    def __init__(self, inputs, outputs):
        self._descs, self._free, self._current = outputs, [], None
        self._total = sum(desc.realsize for desc in outputs)
        self._input = _Memory(sum(desc.realsize for desc in inputs))
        self.input = self._input.path
        self._lend()

    def write(self, inputs):
        data, start = np.frombuffer(self._input.map, np.uint8), 0
        for part in inputs:
            size = memoryview(part).nbytes
            data[start : start + size] = np.frombuffer(part, np.uint8)
            start += size
        self._lend()

    def _lend(self):
        # Outputs of former runs stay as they are as long as somebody looks at them.
        self._current = None
        memory = self._free.pop() if self._free else _Memory(self._total)
        self.output, self._current = memory.path, np.frombuffer(memory.map, np.uint8, memory.size)
        weakref.finalize(self._current, self._free.append, memory)

    def read(self, device):
        start, tensors = 0, []
        for desc in self._descs:
            name = {"double": "float64"}.get(desc.datatype.name, desc.datatype.name)
            array = self._current[start : start + desc.realsize].view(name).reshape(desc.shape)
            tensors.append(Tensor._of_device(array, device))
            start += desc.realsize
        return tensors


def _bytes_of(tensor):
    if isinstance(tensor, Tensor):
        return tensor._bytes
    return (ctypes.c_char * tensor.size).from_address(tensor.buf)


def _check_v3(path, device_id, options):
    text = str(path)
    bad = (
        os.path.islink(text)
        or not os.path.isfile(text)
        or os.stat(text).st_mode & 0o022
        or not text.endswith(".om")
        or not re.match(r"^[A-Za-z0-9_./-]+$", text)
        or os.path.abspath(text).count("/") > 32
    )
    if bad:
        raise RuntimeError("please check model path")
    if options.acl_json_path and not os.path.isfile(options.acl_json_path):
        raise RuntimeError("please check acl json path")
    if not 1 <= options.loop <= 100000:
        raise RuntimeError("loop num out of range. Please check.")
    if not 1 <= options.log_level <= 4:
        raise RuntimeError("log level out of range. Please check.")
    if not 0 <= device_id <= 255:
        raise RuntimeError("device id is out of range")


def model(modelPath, deviceId=0, options=None):
    options.loop  # noqa: B018 - the native function follows the pointer it is given
    return InferenceSession(modelPath, deviceId, options)


if _V1:
    # Gone since October 2022.
    InferenceSession.run_setinputs = InferenceSession._set_inputs
    InferenceSession.run_execute = lambda self, loop=1: self._execute(loop)
    InferenceSession.run_getoutputs = InferenceSession._get_outputs
if _V2:
    InferenceSession.finalize = lambda self: _finalize(self)
if _V3:
    InferenceSession.finalize = staticmethod(_finalize)
    InferenceSession.free_resource = InferenceSession.__del__
    InferenceSession.set_context = lambda self: None
    infer_options = _InferOptions
if not _V1:
    BaseTensor, MemorySummary = _BaseTensor, _MemorySummary
