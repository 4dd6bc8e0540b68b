"""The verdict in forms people and machines read."""
