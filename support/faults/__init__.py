"""The gate tested by known-bad models: a catalogue of faults, put in at the seams where they would arise."""
