"""The evidence of a run: one sealed folder from which its verdict can be recomputed, joined and compared."""
