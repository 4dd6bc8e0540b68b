"""The suite's logic as plain typed Python: no pytest, and no accelerator SDK at import time."""
