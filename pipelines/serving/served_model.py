"""The model that is served: loaded, checked, and replaced when the registry names another."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass

from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.registry.classifier import Classifier
from torchyard.core.tracking.registry.versions import registered_version
from torchyard.core.tracking.store import open_existing, tracking_uri

logger = logging.getLogger(__name__)


@dataclass
class ServedModel:
    """What a name stands for now.

    Attributes:
        wanted: what was asked for, as `Classifier.find` takes it.
        classifier: loaded. A request that has begun keeps the one it began with.
        trouble: why the registry, or the model that it names now, could not be had the last time;
            the one before is served meanwhile.
    """

    wanted: str
    classifier: Classifier
    trouble: str | None = None

    @classmethod
    def load(cls, wanted: str) -> ServedModel:
        """Find a model and load it; its weights are compared with the digest recorded.

        Raises:
            UserError: there is no such thing, or it has no model.
            RunError: the store is out of reach, or the weights are not those recorded.
        """
        classifier = Classifier.find(wanted)
        classifier.model  # noqa: B018 - loads it
        with suppress(UserError):  # it has none, which whoever asks for sets is told
            classifier.confidence  # noqa: B018 - loads it
        return cls(wanted, classifier)

    def update(self) -> bool:
        """Load what the name stands for now, if that is another version; whether it was.

        Errors leave the model that is served, and are the `trouble`.
        """
        before = self.classifier
        try:
            client, uri = open_existing(tracking_uri()), tracking_uri()
            with store_errors(uri):
                version = registered_version(client, self.wanted)
            if version is None:  # a run, whose model never changes; or its alias is gone
                return False
            name = f"{version.name}/{version.version}"
            if name != before.version:
                self.classifier = self.load(name).classifier
            self.trouble = None
        except (UserError, RunError) as error:
            if self.trouble != str(error):
                logger.warning("%s is served on. %s", before.version, error)
            self.trouble = str(error)
        return self.classifier is not before

    def follow(self, seconds: float, stopped: threading.Event) -> None:
        """`update` every so many seconds until it is stopped."""
        while not stopped.wait(seconds):
            if self.update():
                logger.warning("%s is served now.", self.classifier.version)
