"""Where an ONNX file came from, written into the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from mimiq_export.provenance import ExportProvenance

__all__ = ["METADATA_PREFIX", "WriteMetadataPass"]

METADATA_PREFIX = "mimiq_deploy."
PRODUCER = "mimiq-deploy"


class WriteMetadataPass(ir.passes.InPlacePass):
    """Name the run, the model, the bit widths, the recipe and the preprocessing in the model.

    1. What the capture left in the model's metadata goes.
    2. Metadata keys are ``mimiq_deploy.version``, ``.run``, ``.model``, ``.bits``, ``.recipe``,
       ``.target`` and ``.preprocessing`` (JSON); runtimes hand them out beside the session.
    3. Producer name and version are those of mimiq-deploy.
    4. The doc string says the same in one sentence, for viewers.

    Args:
        provenance: What to write.
        target: Name of the target.
    """

    def __init__(self, provenance: ExportProvenance, target: str) -> None:
        super().__init__()
        self._provenance = provenance
        self._target = target

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        given = self._provenance
        facts = {
            "version": given.version,
            "run": given.run_id,
            "model": given.model,
            "bits": given.bits,
            "recipe": given.recipe,
            "target": self._target,
            "preprocessing": given.preprocessing.model_dump_json(),
        }
        model.metadata_props.clear()
        model.metadata_props.update({METADATA_PREFIX + key: facts[key] for key in facts})
        model.producer_name = PRODUCER
        model.producer_version = given.version
        model.doc_string = (
            f"{given.model}, {given.bits}, recipe {given.recipe}, written for the target "
            f"{self._target} by {PRODUCER} {given.version} from the run {given.run_id}."
        )
        return ir.passes.PassResult(model, modified=True)
