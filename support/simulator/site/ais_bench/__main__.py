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
PADDING = "padding_infer_fake_file"
GENERATION = aclruntime._GENERATION
V1, V2, V3 = (name == GENERATION for name in ("V1", "V2", "V3"))
SUFFIXES = (".bin", ".BIN", ".npy", ".NPY")


def parser():
    found = argparse.ArgumentParser(prog="ais_infer.py" if V1 else "ais_bench")
    found.add_argument(*(["--model", "--om"] if V1 else ["--model", "-m"]), dest="model", required=True)
    found.add_argument("--input", "-i")
    found.add_argument("--output", "-o")
    found.add_argument("--output_dirname", default=None)
    found.add_argument("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    found.add_argument("--loop", "-r" if V1 else "-l", type=int, default=1)
    found.add_argument("--batchsize", type=int, default=1 if V1 else None)
    found.add_argument("--device", "-d", type=_one_device if V1 else _devices, default=0 if V1 else [0])
    found.add_argument("--debug", default=False)
    found.add_argument("--pure_data_type", default="zero", choices=["zero", "random"])
    found.add_argument("--acl_json_path", default=None)
    if V1:
        found.add_argument("--infer_queue_count", type=int, default=20)
        return found
    found.add_argument("--run_mode", default="array", choices=["array", "files", "tensor", "full"])
    found.add_argument("--warmup_count", type=int, default=1)
    found.add_argument("--display_all_summary", type=_flag, default=False)
    found.add_argument("--output_batchsize_axis", type=int, default=0)
    if V3:
        found.add_argument("--pipeline", type=_flag, default=False)
        found.add_argument("--threads", type=int, default=1)
        found.add_argument("--energy_consumption", type=_flag, default=False)
    return found


def _flag(text):
    if text.lower() not in ("0", "1", "true", "false"):
        raise argparse.ArgumentTypeError("Boolean value expected.")
    return text.lower() in ("1", "true")


def _one_device(text):
    if not text.isdigit() or int(text) > 254:
        raise argparse.ArgumentTypeError("device is one of 0..254")
    return int(text)


def _devices(text):
    if not re.match(r"^\d+(,\d+)*$", text) or any(int(part) > 255 for part in text.split(",")):
        raise argparse.ArgumentTypeError("device:%s is invalid. valid value range is [0, 255]" % text)
    return [int(part) for part in text.split(",")]


def check_paths(found, arguments):
    """Refuse what the third generation refuses before anything runs."""
    if not V3:
        return
    for name in ("model", "input", "output"):
        path = getattr(arguments, name)
        if path is None or not os.path.exists(path):
            continue
        if os.path.islink(path) or not re.match(r"^[A-Za-z0-9_./-]+$", path):
            found.error("argument --%s: path %s is not legal" % (name, path))
        if os.stat(path).st_mode & {"output": 0o027}.get(name, 0o022):
            found.error("argument --%s: permissions of %s are too wide" % (name, path))
    if not arguments.model.endswith(".om"):
        found.error("argument --model: %s is no .om file" % arguments.model)
    if arguments.output_dirname and os.path.isabs(arguments.output_dirname):
        found.error("argument --output_dirname: it must be relative")
    if not 1 <= arguments.loop <= 100000:
        found.error("argument --loop: out of range")


def main():
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(levelname)s] %(message)s")
    found = parser()
    arguments = found.parse_args()
    check_paths(found, arguments)
    if not V1 and arguments.output_dirname and not arguments.output:
        raise RuntimeError("error bad parameters --output_dirname")
    device = arguments.device if V1 else arguments.device[0]
    options = aclruntime.session_options()
    options.loop = arguments.loop
    if arguments.acl_json_path:
        options.acl_json_path = arguments.acl_json_path
    session = aclruntime.InferenceSession(arguments.model, device, options)
    session.set_staticbatch()
    batch = arguments.batchsize
    if batch is None:
        batch = session.get_inputs()[0].shape[0]
        LOG.info("try get model batchsize:%d", batch)
    bench = Bench(session, arguments, batch)
    bench.run()
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
        runs = self.runs()
        # The first generation as it was in October 2022.
        warm_up = 1 if V1 else self.arguments.warmup_count
        first = self.loaded(runs[0])
        for _ in range(warm_up):
            self.session.run(self.names, first)
        LOG.info("warm up %s done", "%d times" % warm_up if V1 else warm_up)
        self.session.reset_sumaryinfo()
        for place, files in enumerate(runs):
            sys.stdout.write("\rInference array Processing: %d/%d" % (place + 1, len(runs)))
            self.one(files)
        sys.stdout.write("\n")
        self.summary()

    def runs(self):
        if self.arguments.input is None:
            return [["pure_infer_data"]]
        folder = self.arguments.input
        if os.path.isdir(folder):
            names = [name for name in os.listdir(folder) if name.endswith(SUFFIXES)]
            paths = [os.path.join(folder, name) for name in sorted(names, key=natural)]
        else:
            paths = folder.split(",") if os.path.exists(folder.split(",")[0]) else []
        if not paths:
            LOG.error("no files in %s", folder)
            raise RuntimeError()
        size = os.path.getsize(paths[0])
        if size == 0 or self.desc.realsize % size:
            LOG.error("arg0 tensorsize: %d filesize: %d not match", self.desc.realsize, size)
            raise RuntimeError()
        each = self.desc.realsize // size
        count = math.ceil(len(paths) / float(each))
        text = "get filesperbatch files0 size:%d tensor0size:%d filesperbatch:%d runcount:%d"
        LOG.info(text, size, self.desc.realsize, each, count)
        padded = paths + [PADDING] * (each * count - len(paths))
        return [padded[start : start + each] for start in range(0, len(padded), each)]

    def loaded(self, files):
        if files == ["pure_infer_data"]:
            data = np.zeros(self.desc.realsize, np.uint8)
        else:
            data = np.concatenate([np.fromfile(files[0] if name == PADDING else name, np.uint8) for name in files])
        return [aclruntime.Tensor(np.ascontiguousarray(data))]

    def one(self, files):
        start = time.time()
        tensors = self.loaded(files)
        self.h2d.append(1e3 * (time.time() - start))
        outputs = self.session.run(self.names, tensors)
        start = time.time()
        for output in outputs:
            output.to_host()
        self.d2h.append(1e3 * (time.time() - start))
        if self.folder is not None:
            self.save(files, [np.array(output) for output in outputs])

    def save(self, files, arrays):
        if files == ["pure_infer_data"]:
            for place, array in enumerate(arrays):
                self.write("pure_infer_data_%d" % place, array)
            return
        parts = [np.array_split(array, len(files), axis=0) for array in arrays]
        for slot, path in enumerate(files):
            if path == PADDING:
                continue
            stem = os.path.basename(path).split(".")[0]
            written = [self.write("%s_%d" % (stem, place), part[slot]) for place, part in enumerate(parts)]
            self.files[str(len(self.files))] = {"infiles": [path], "outfiles": written}

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
            for name in ("NPU_compute_time", "H2D_latency", "D2H_latency"):
                facts[name]["count"] = len(times)
        path = os.path.join(self.folder, "sumary.json") if V1 else self.folder.rstrip("/") + "_summary.json"
        with open(path, "w") as file:
            json.dump(facts, file)


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
