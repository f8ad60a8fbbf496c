"""Audio as a data set: the spectra of waves, as vectors.

TORCHYARD_PLUGINS=examples torchyard run digits dataset=wave_vectors model=linear

A data set of any NumPy arrays takes these few lines, whether they are computed or read from
sound files: float32 N x D or N x C x L, uint8 N x C x H x W, or integers N x L (token ids), and
class indices.
"""

from torchyard import ArraySplit, DatasetParams, RawData, SampleSpec, hookimpl


class WaveVectors(DatasetParams):
    """The spectra of noisy sine, square and sawtooth waves of any pitch and phase."""

    length: int = 512
    count: int = 600
    seed: int = 0

    def build(self, downloads):
        """Compute the waves and their log-magnitude spectra, float32 count x (length / 2 + 1)."""
        import numpy as np
        from scipy import signal

        random = np.random.default_rng(self.seed)
        labels = np.arange(self.count) % 3
        cycles = random.uniform(4, 40, (self.count, 1)) * np.linspace(0, 1, self.length)
        phase = 2 * np.pi * (cycles + random.uniform(size=(self.count, 1)))
        waves = np.choose(
            labels[:, None], [np.sin(phase), signal.square(phase), signal.sawtooth(phase)]
        )
        waves += random.normal(0, 0.1, waves.shape)
        spectra = np.log1p(np.abs(np.fft.rfft(waves))).astype(np.float32)
        test = self.count // 5
        return RawData(
            classes=["sine", "square", "sawtooth"],
            train=ArraySplit(spectra[test:], labels[test:]),
            test=ArraySplit(spectra[:test], labels[:test]),
        )

    def describe(self):
        """One spectrum, three classes."""
        return SampleSpec((self.length // 2 + 1,), 3)


@hookimpl
def register_datasets(register):
    """Registers `wave_vectors`."""
    register("wave_vectors", WaveVectors)
