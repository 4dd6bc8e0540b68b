"""The simulated package of the command-line tool."""
