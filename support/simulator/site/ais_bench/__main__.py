"""
The simulated command-line tool that runs a model over files, in the behaviour of three generations.

It runs under Python 3.7 and needs NumPy and the simulated runtime. As the first generation it is ``ais_infer.py``.
"""

import argparse
import json
import logging
import math
import os
import re
import sys
import time

import aclruntime
import numpy as np

LOG = logging.getLogger("ais_bench")
PURE, PADDING = "pure_infer_data", "padding_infer_fake_file"
GENERATION = aclruntime._GENERATION
V1, V2, V3 = (name == GENERATION for name in ("V1", "V2", "V3"))
SUFFIXES = (".bin", ".BIN", ".npy", ".NPY")


#: Options that are known but not simulated, by the generation they came with, and what they take.
OTHERS = {
    "V1": ["dymBatch", "dymHW", "dymDims", "dymShape", "outputSize"],
    "V2": ["dymShape_range", "auto_set_dymshape_mode", "auto_set_dymdims_mode"],
    "V3": ["aipp_config", "energy_consumption", "npu_id", "backend", "perf", "pipeline", "threads"],
}
OTHERS["V3"] += ["profiler_rename", "dump_npy", "divide_input"]
OFF = (None, False, "0", "false")


def parser():
    found = argparse.ArgumentParser(prog="ais_infer.py" if V1 else "ais_bench")
    found.add_argument(*(["--model", "--om"] if V1 else ["--model", "-m"]), dest="model", required=True)
    found.add_argument("--input", "-i")
    found.add_argument("--output", "-o")
    found.add_argument("--output_dirname", default=None)
    found.add_argument("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    found.add_argument("--loop", "-r" if V1 else "-l", type=int if V1 else _positive, default=1)
    found.add_argument("--batchsize", type=int if V1 else _positive, default=1 if V1 else None)
    found.add_argument("--device", "-d", type=_one_device if V1 else _devices, default=[0])
    found.add_argument("--debug", type=_flag, default=False)
    found.add_argument("--pure_data_type", default="zero", choices=["zero", "random"])
    found.add_argument("--acl_json_path", default=None)
    for name in ("--dump", "--profiler"):
        if V1:
            found.add_argument(name, action="store_true")
        else:
            found.add_argument(name, type=_flag, default=False)
    for generation, names in OTHERS.items():
        if generation <= GENERATION:
            for name in names:
                found.add_argument("--" + name, default=None)
    if V1:
        found.add_argument("--infer_queue_count", type=int, default=20)
        return found
    found.add_argument("--run_mode", default="array", choices=["array", "files", "tensor", "full"])
    found.add_argument("--warmup_count", type=_natural, default=1)
    found.add_argument("--display_all_summary", type=_flag, default=False)
    found.add_argument("--output_batchsize_axis", type=_natural, default=0)
    return found


def _natural(text):
    if int(text) < 0:
        raise argparse.ArgumentTypeError("%s is an invalid nonnegative int value" % text)
    return int(text)


def _positive(text):
    if int(text) <= 0:
        raise argparse.ArgumentTypeError("%s is an invalid positive int value" % text)
    return int(text)


def _flag(text):
    if text.lower() not in ("0", "1", "true", "false"):
        raise argparse.ArgumentTypeError("Boolean value expected.")
    return text.lower() in ("1", "true")


def _one_device(text):
    if not text.isdigit() or int(text) > 254:
        raise argparse.ArgumentTypeError("device is one of 0..254")
    return [int(text)]


def _devices(text):
    if not re.match(r"^\d+(,\d+)*$", text) or any(int(part) > 255 for part in text.split(",")):
        raise argparse.ArgumentTypeError("device:%s is invalid. valid value range is [0, 255]" % text)
    return [int(part) for part in text.split(",")]


def check_paths(found, arguments):
    """Refuse what the third generation refuses before anything runs."""
    if not V3:
        return
    inputs = arguments.input.split(",") if arguments.input else []
    checked = [("model", arguments.model, 0o022), ("output", arguments.output, 0o027)]
    for name, path, too_wide in checked + [("input", path, 0o022) for path in inputs]:
        if path is None or not os.path.lexists(path):
            continue
        if os.path.islink(path) or not re.match(r"^[A-Za-z0-9_./-]+$", path):
            found.error("argument --%s: path %s is not legal" % (name, path))
        if os.stat(path).st_mode & too_wide:
            found.error("argument --%s: permissions of %s are too wide" % (name, path))
    if not arguments.model.endswith(".om"):
        found.error("argument --model: %s is no .om file" % arguments.model)
    if arguments.output_dirname and os.path.isabs(arguments.output_dirname):
        found.error("argument --output_dirname: it must be relative")
    if arguments.loop > 100000:
        found.error("argument --loop: out of range")


def check_together(arguments):
    if arguments.dump and arguments.profiler:
        raise RuntimeError("error bad parameters --profiler and --dump")
    if (arguments.dump or arguments.profiler) and not arguments.output:
        raise RuntimeError("miss output parameter!")
    if not V1 and arguments.output_dirname and not arguments.output:
        raise RuntimeError("error bad parameters --output_dirname")
    others = [name for names in OTHERS.values() for name in names]
    used = ["--" + name for name in ["dump", "profiler", *others] if getattr(arguments, name, None) not in OFF]
    used += ["several devices"] if len(arguments.device) > 1 else []
    if used:
        raise RuntimeError("not simulated: %s" % ", ".join(used))


def main():
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(levelname)s] %(message)s")
    found = parser()
    arguments = found.parse_args()
    check_paths(found, arguments)
    check_together(arguments)
    options = aclruntime.session_options()
    options.loop = arguments.loop
    if arguments.acl_json_path:
        options.acl_json_path = arguments.acl_json_path
    session = aclruntime.InferenceSession(arguments.model, arguments.device[0], options)
    session.set_staticbatch()
    batch = arguments.batchsize
    if batch is None:
        batch = session.get_inputs()[0].shape[0]
        LOG.info("try get model batchsize:%d", batch)
    Bench(session, arguments, batch).run()
    if V2:
        session.finalize()
    return 0


class Bench(object):
    """One run of a model over a directory of files, or over one made-up batch."""

    def __init__(self, session, arguments, batch):
        self.session, self.arguments, self.batch = session, arguments, batch
        self.desc = session.get_inputs()[0]
        self.names = [desc.name for desc in session.get_outputs()]
        self.h2d, self.d2h, self.files = [], [], {}
        self.folder = self.made_folder() if arguments.output else None

    def made_folder(self):
        name = self.arguments.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S")
        folder = os.path.join(self.arguments.output, name)
        if V1:
            os.mkdir(folder)
        else:
            os.makedirs(folder, mode=0o750, exist_ok=True)
        LOG.info("output path:%s", folder)
        return folder

    def run(self):
        # The first generation warms up with made-up data, before it looks at the files.
        runs = None if V1 else self.runs()
        self.warm_up(self.loaded([PURE] if V1 else runs[0]))
        runs = runs or self.runs()
        for place, files in enumerate(runs):
            sys.stdout.write("\rInference array Processing: %d/%d" % (place + 1, len(runs)))
            self.one(files, place * len(files))
        sys.stdout.write("\n")
        self.summary()

    def warm_up(self, tensors):
        # The first generation as it was in October 2022.
        count = 1 if V1 else self.arguments.warmup_count
        self.session.options().loop = 1
        for _ in range(count):
            self.session.run(self.names, tensors)
        self.session.options().loop = self.arguments.loop
        self.session.reset_sumaryinfo()
        LOG.info("warm up %s done", "%d times" % count if V1 else count)

    def runs(self):
        if self.arguments.input is None:
            return [[PURE]]
        paths = self.paths(self.arguments.input.split(","))
        size = read(paths[0]).nbytes
        if size == 0 or self.desc.realsize % size:
            LOG.error("arg0 tensorsize: %d filesize: %d not match", self.desc.realsize, size)
            raise RuntimeError()
        each = self.desc.realsize // size
        count = math.ceil(len(paths) / float(each))
        text = "get filesperbatch files0 size:%d tensor0size:%d filesperbatch:%d runcount:%d"
        LOG.info(text, size, self.desc.realsize, each, count)
        padded = paths + [PADDING] * (each * count - len(paths))
        return [padded[start : start + each] for start in range(0, len(padded), each)]

    def paths(self, entries):
        """Files of the one input: a list of them, or those of a directory."""
        if os.path.isfile(entries[0]):
            missing = [entry for entry in entries if not os.path.isfile(entry)]
            if missing:
                LOG.error("Invalid input args.--input:%s %s not exist", entries, missing[0])
                raise RuntimeError()
            return entries
        if not os.path.isdir(entries[0]) or len(entries) != len(self.session.get_inputs()):
            LOG.error("Invalid args. %s of --input is invalid", entries)
            raise RuntimeError()
        names = sorted((name for name in os.listdir(entries[0]) if name.endswith(SUFFIXES)), key=natural)
        if not names:
            LOG.error("no files in %s", entries[0])
            raise RuntimeError()
        return [os.path.join(entries[0], name) for name in names]

    def loaded(self, files):
        if files == [PURE]:
            data = np.zeros(self.desc.realsize, np.uint8)
            if self.arguments.pure_data_type == "random":
                data = np.random.randint(0, 256, data.size, np.uint8)
        else:
            data = np.concatenate([read(files[0] if name == PADDING else name) for name in files])
        if len(files) > 1 and data.nbytes != self.desc.realsize:
            LOG.error("ndata size:%d not match %d", data.nbytes, self.desc.realsize)
            raise RuntimeError()
        return [aclruntime.Tensor(data)]

    def one(self, files, first):
        start = time.time()
        tensors = self.loaded(files)
        self.h2d.append(1e3 * (time.time() - start))
        outputs = self.session.run(self.names, tensors)
        start = time.time()
        for output in outputs:
            output.to_host()
        self.d2h.append(1e3 * (time.time() - start))
        if self.folder is not None:
            for place, output in enumerate(outputs):
                self.save(files, first, place, np.array(output))

    def save(self, files, first, place, array):
        axis = 0 if V1 else self.arguments.output_batchsize_axis
        if axis >= array.ndim or array.shape[axis] % len(files):
            LOG.error("save out files error array shape:%s filesinfo:%s", array.shape, files)
            raise RuntimeError()
        for slot, part in enumerate(np.array_split(array, len(files), axis)):
            if files[slot] != PADDING:
                written = self.write("%s_%d" % (os.path.basename(files[slot]).split(".")[0], place), part)
                sample = self.files.setdefault(str(first + slot), {"infiles": [files[slot]], "outfiles": []})
                sample["outfiles"].append(written)

    def write(self, name, array):
        path = os.path.join(self.folder, name)
        if self.arguments.outfmt == "NPY":
            np.save(path + ".npy", array)
            return path + ".npy"
        path += "." + self.arguments.outfmt.lower()
        if self.arguments.outfmt == "TXT":
            np.savetxt(path, array.reshape(-1))
        else:
            array.tofile(path)
        return path

    def times(self):
        found = self.session.sumary().exec_time_list
        return [item[1] - item[0] for item in found] if V3 else list(found)

    def summary(self):
        times = self.times()
        throughput = 1000.0 * self.batch / float(np.mean(times))
        facts = {"NPU_compute_time": _spread(times), "H2D_latency": _spread(self.h2d), "D2H_latency": _spread(self.d2h)}
        LOG.info("-----------------Performance Summary------------------")
        copies = V1 or self.arguments.display_all_summary
        for name in ("H2D_latency", "NPU_compute_time", "D2H_latency"):
            if copies or name == "NPU_compute_time":
                LOG.info("%s (ms): %s", name, ", ".join("%s = %s" % item for item in facts[name].items()))
        label = "" if V1 else ".mean"
        text = "throughput 1000*batchsize%s(%s)/NPU_compute_time.mean(%s): %s"
        LOG.info(text, label, self.batch, float(np.mean(times)), throughput)
        LOG.info("------------------------------------------------------")
        if self.folder is None:
            return
        facts.update(filesinfo=self.files, args=sys.argv, throughput=throughput)
        facts.update(pid=os.getpid(), npu_compute_time_list=times)
        if not V1:
            for name, values in (("NPU_compute_time", times), ("H2D_latency", self.h2d), ("D2H_latency", self.d2h)):
                facts[name]["count"] = len(values)
        path = os.path.join(self.folder, "sumary.json") if V1 else self.folder.rstrip("/") + "_summary.json"
        with open(path, "w") as file:
            json.dump(facts, file)


def read(path):
    return (np.load(path) if path.lower().endswith(".npy") else np.fromfile(path, np.uint8)).reshape(-1).view(np.uint8)


def natural(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _spread(times):
    values = np.array(times, float)
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "percentile(99%)": float(np.percentile(values, 99)),
    }


if __name__ == "__main__":
    sys.exit(main())
