"""A simulated host with Ascend devices: what the tools of CANN do, as far as their documents and sources tell."""
