"""Ascend devices and the tools of CANN: npu-smi, atc, aclruntime, ais_bench."""
