"""Why a run ended: what its ranks record, and what the records explain."""
