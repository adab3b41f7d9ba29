"""Why a run ended: what its ranks write down, and what that tells afterwards."""
