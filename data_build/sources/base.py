"""What every source declares about itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceInfo:
    """Where data come from, for provenance, the dataset card and ``python -m data_build sources``.

    ``kind`` is one of `astrobio.schema.PROVENANCE_KINDS`, ``modality`` one of its parts.
    """

    name: str
    modality: str
    version: str
    licence: str
    citation: str
    kind: str

    def provenance(self, quality: float) -> dict:
        """The record's provenance struct for one part, with ``quality`` from 0 to 1."""
        return {"source": self.name, "version": self.version, "licence": self.licence, "kind": self.kind,
                "quality": float(quality)}
