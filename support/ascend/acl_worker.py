"""
The process that holds the native runtime.

This file is complete in itself: it runs under the interpreter aclruntime was built for, which may be Python 3.7, and
needs NumPy and aclruntime alone. Nothing of the suite is imported, and no newer syntax is used. With ``--probe`` it
tells what it could import; with ``--serve READ WRITE`` it answers JSON lines on two descriptors of its own, because
native code prints on standard output. Tensors pass through a file that both sides map.
"""

from __future__ import annotations

import ctypes
import glob
import json
import mmap
import os
import platform
import signal
import sys
import threading
from typing import Any, Dict, List, Optional, TextIO

#: Line buffering for C's standard output, so that the last words of a crash are not lost in a buffer.
_IOLBF = 1
_PR_SET_PDEATHSIG = 1
DTYPES = {"double": "float64", "bool": "bool"}


def probe() -> Dict[str, Any]:
    """Return what can be imported here, as a dictionary that JSON takes."""
    facts: Dict[str, Any] = {"python": platform.python_version()}
    try:
        import numpy

        facts["numpy"] = numpy.__version__
        import aclruntime
    except Exception as error:  # an extension module may raise anything while it loads
        facts["error"] = "%s: %s" % (type(error).__name__, error)
        return facts
    facts["generation"] = generation(aclruntime)
    facts["wheel"] = wheel_version(aclruntime)
    return facts


def generation(runtime: Any) -> str:
    """Tell the generation of the runtime by what it has; its version number does not."""
    if not hasattr(runtime, "BaseTensor"):
        return "V1"
    return "V3" if hasattr(runtime.InferenceSession, "free_resource") else "V2"


def wheel_version(runtime: Any) -> str:
    """Version of the installed wheel; empty if there is no record of it."""
    folder = os.path.dirname(os.path.abspath(getattr(runtime, "__file__", "") or ""))
    for record in glob.glob(os.path.join(folder, "aclruntime-*.dist-info")):
        return os.path.basename(record)[len("aclruntime-") : -len(".dist-info")]
    return ""


class Model:
    """A model loaded on a device."""

    def __init__(self, path: str, device: int) -> None:
        import aclruntime
        import numpy

        self.numpy, self.runtime, self.device = numpy, aclruntime, device
        self.generation = generation(aclruntime)
        options = aclruntime.session_options()
        self.session = aclruntime.InferenceSession(path, device, options)
        self.session.set_staticbatch()
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self.names = [desc.name for desc in self.outputs]
        self.copies = aclruntime.MemorySummary() if hasattr(aclruntime, "MemorySummary") else None
        self.kept: List[Any] = []
        self.writing: Optional[threading.Thread] = None

    def described(self) -> Dict[str, Any]:
        """Return what the runtime says of inputs and outputs."""
        return {
            "generation": self.generation,
            "inputs": [self._described(desc) for desc in self.inputs],
            "outputs": [self._described(desc) for desc in self.outputs],
        }

    def _described(self, desc: Any) -> Dict[str, Any]:
        name = desc.datatype.name
        return {
            "name": desc.name,
            "shape": [int(side) for side in desc.shape],
            "dtype": DTYPES.get(name, name),
            "bytes": int(desc.realsize),
        }

    def map(self, path: str, input_bytes: int, places: int, outputs: int) -> None:
        """Map the inputs, which lie at the start of the file; the outputs are written from a place behind them on."""
        self.file = os.open(path, os.O_RDWR)
        memory = mmap.mmap(self.file, 0)
        starts = [place * input_bytes for place in range(places)]
        self.places = [self.numpy.frombuffer(memory, self.numpy.uint8, input_bytes, start) for start in starts]
        self.outputs_start = outputs

    def run(self, place: int) -> Dict[str, Any]:
        """Run once on the input at a place; the outputs are kept until the next run, the times are milliseconds."""
        data = self.places[place]
        if data.nbytes != self.inputs[0].realsize:
            raise ValueError("the input has %d bytes, the model takes %d" % (data.nbytes, self.inputs[0].realsize))
        self.session.reset_sumaryinfo()
        if self.copies is not None:
            self.copies.reset()
        outputs = self.session.run(self.names, [self._tensor(data)])
        if len(outputs) != len(self.names):
            raise ValueError("the runtime gave %d outputs, declared are %d" % (len(outputs), len(self.names)))
        # Of the outputs of two runs only those of one are in this process's memory at a time.
        self._wait()
        self.kept = []
        for number, (output, desc) in enumerate(zip(outputs, self.outputs)):
            output.to_host()
            # A view where the runtime allows it.
            array = self.numpy.asarray(output)
            if array.nbytes != desc.realsize:
                raise ValueError("output %d has %d bytes, declared are %d" % (number, array.nbytes, desc.realsize))
            self.kept.append(array.reshape(-1).view(self.numpy.uint8))
        return {"compute": self._compute_times(), "h2d": self._copy_time("H2D"), "d2h": self._copy_time("D2H")}

    def fetch(self, mark: int) -> None:
        """Begin to write the outputs of the last run to the file, and behind them a mark that tells they are there."""
        self._wait()
        pieces, self.kept = self.kept, []
        self.writing = threading.Thread(target=self._write, args=(pieces, mark), daemon=True)
        self.writing.start()

    def _write(self, pieces: List[Any], mark: int) -> None:
        place = self.outputs_start
        end = place + sum(len(piece) for piece in pieces)
        pieces = [memoryview(piece) for piece in pieces] + [memoryview(_mark(mark))]
        try:
            while pieces:
                # One call for all: newer runtimes hold the interpreter's lock while they run, and between two calls
                # this thread would wait for it.
                written = os.pwritev(self.file, pieces, place)
                place += written
                while pieces and written >= len(pieces[0]):
                    written -= len(pieces.pop(0))
                if written:
                    pieces[0] = pieces[0][written:]
        except BaseException:
            os.pwrite(self.file, _mark(-1), end)
            raise

    def _wait(self) -> None:
        if self.writing is not None:
            self.writing.join()
            self.writing = None

    def _tensor(self, data: Any) -> Any:
        """Hand the input to the runtime: newer ones take foreign memory, the first copies an array to the device."""
        if self.generation == "V1":
            tensor = self.runtime.Tensor(data)
            tensor.to_device(self.device)
            return tensor
        return self.runtime.BaseTensor(data.ctypes.data, data.nbytes)

    def _compute_times(self) -> List[float]:
        """Durations of the executions since the last reset; the third generation keeps pairs of start and end."""
        found = self.session.sumary().exec_time_list
        return [float(item[1]) - float(item[0]) if hasattr(item, "__len__") else float(item) for item in found]

    def _copy_time(self, direction: str) -> Optional[float]:
        times = getattr(self.copies, direction + "_time_list", None)
        return float(sum(times)) if times else None

    def close(self) -> None:
        """Unload, and give the device back, in the way of each generation."""
        self._wait()
        self.kept = []
        if self.generation == "V3":
            self.session.free_resource()
            self.runtime.InferenceSession.finalize()
        elif self.generation == "V2":
            self.session.finalize()
        self.session = None


def _mark(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder, signed=True)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the other side closes."""
    model: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["op"] == "open":
                model = Model(request["model"], request["device"])
                answer = model.described()
            elif request["op"] == "map":
                model.map(request["path"], request["input"], request["places"], request["outputs"])
                answer = {}
            elif request["op"] == "run":
                answer = model.run(request["place"])
            elif request["op"] == "fetch":
                model.fetch(request["mark"])
                answer = {}
            else:
                model.close()
                answer = {}
            answer["ok"] = True
        except Exception as error:  # the runtime raises RuntimeError; whatever it is, the suite must hear of it
            answer = {"ok": False, "error": "%s: %s" % (type(error).__name__, error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(arguments: List[str]) -> None:
    """Probe or serve."""
    # Modules beside this file belong to the suite, and nothing imported here may find them.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]
    library = ctypes.CDLL(None)
    if arguments[0] == "--probe":
        # Native libraries may print while they load.
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        answers.write(json.dumps(probe()) + "\n")
        answers.flush()
        return
    # A stuck native call must not outlive the suite, and keep the device.
    library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, _IOLBF, 0)
    read, write = int(arguments[1]), int(arguments[2])
    with os.fdopen(read) as requests, os.fdopen(write, "w") as answers:
        serve(requests, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
