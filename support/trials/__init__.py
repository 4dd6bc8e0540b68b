"""The gate tried by what befalls it: kills, harmed files and disks, many sessions at once."""
