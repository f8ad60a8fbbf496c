"""The model card of a run in Markdown, from its record.

The sections are those of Hugging Face's template
(https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/templates/modelcard_template.md),
less those of which a record cannot know anything. What only people can say is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from torchyard.core.evaluation.confidence import calibration
from torchyard.core.report.markdown import per_class_markdown
from torchyard.core.report.page import render

if TYPE_CHECKING:
    from torchyard.core.config.schema import RunConfig
    from torchyard.core.data.dataset import PreparedDataset
    from torchyard.core.data.predictions import Predictions
    from torchyard.core.report.run.headline import Headline

FILE = "model_card.md"  # an artifact of a run
DIGEST = 16  # characters of a digest


def model_card(
    config: RunConfig,
    prepared: PreparedDataset,
    predictions: Predictions,
    headline: Headline,
    *,
    run: str,
    recipe: Mapping[str, str],
    trained: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Write the card.

    Args:
        config: of the run.
        prepared: the data set it was trained and tested on.
        predictions: of the test split.
        headline: with their evaluation.
        run: its name.
        recipe: how it was trained, by what it is about.
        trained: device, device_name, seconds, images_per_second, parameters, torch_version.
        tags: of the run.
    """
    images = len(prepared.shape) == 3
    return render(
        "model_card.md",
        metadata=yaml.safe_dump(
            _metadata(config.model.name, prepared, headline, images),
            sort_keys=False,
            allow_unicode=True,
        ).rstrip(),
        name=f"{config.model.name} on {headline.dataset}",
        run=run,
        headline=headline,
        evaluation=headline.evaluation,
        calibration_error=calibration(predictions).error,
        config=config,
        prepared=prepared,
        # A path is nobody else's business, and of no use to them.
        source=prepared.source if "://" in prepared.source else "",
        recipe=recipe,
        trained=trained,
        developer=tags.get("mlflow.user", ""),
        weights_digest=tags.get("weights_digest", "")[:DIGEST],
        data_digest=prepared.digest[:DIGEST],
        images=images,
        table=per_class_markdown(headline.evaluation, weakest_first=True),
    )


def _metadata(
    model: str, prepared: PreparedDataset, headline: Headline, images: bool
) -> dict[str, Any]:
    """What stands at the head of the card, for programs."""
    evaluation = headline.evaluation
    task = "image-classification" if images else "other"
    figures = {"accuracy": evaluation.accuracy, **dict(evaluation.further)}
    return {
        "library_name": "pytorch",
        "tags": ["torchyard", task],
        "datasets": [prepared.name],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": model,
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {
                            "name": prepared.name,
                            "type": prepared.name,
                            "split": "test",
                            "revision": prepared.test_digest,
                        },
                        "metrics": [
                            {"type": name, "name": name, "value": round(value, 6)}
                            for name, value in figures.items()
                            if value == value
                        ],
                    }
                ],
            }
        ],
    }
