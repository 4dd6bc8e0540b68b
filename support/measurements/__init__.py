"""One function a clause: what was measured, judged nowhere but in the spec."""
