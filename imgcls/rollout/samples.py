"""Sample: one answer as it was seen at the front door or by the shadow; and answers of two versions to one request.

Written by the engine, read by the analysis. 5xx and no answer are the server's failures; 4xx are the client's own and
say nothing about a version, unless stable answered the same request: then the new version refuses what it should not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OK = 200
NO_ANSWER = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Args:
        time_s: when it came, seconds since the epoch.
        request_id: shared by the answer a client got and its shadow.
        version: that answered.
        is_shadow: no client saw it.
        status: of HTTP; 0 for no answer.
        duration_ms: until it came, or until it was given up.
        label: the best class; None without a prediction.
        probability: of the best class, 0..1.
        probabilities: of the classes that the answer listed, which need not be all.
    """

    time_s: float
    request_id: str
    version: str
    is_shadow: bool
    status: int
    duration_ms: float
    label: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] | None = None

    @property
    def is_error(self) -> bool:
        """Whether the server failed."""
        return self.status == NO_ANSWER or self.status >= 500

    @property
    def is_counted(self) -> bool:
        """Whether it says anything about the version: not where the client erred."""
        return self.is_error or self.status < 400


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """What two versions answered to one request, both with status 200 and a class."""

    request_id: str
    stable: Sample
    candidate: Sample

    @property
    def is_alike(self) -> bool:
        """Whether both name the same best class."""
        return self.stable.label == self.candidate.label

    @property
    def drift(self) -> float | None:
        """How far the probability of the stable version's best class moved, 0..1; None where stable gave none.

        A class that the candidate did not list counts as 0, which is at most the least listed probability too much.
        """
        if self.stable.probability is None or self.stable.label is None:
            return None
        return abs(self.stable.probability - _probability_of(self.stable.label, self.candidate))


@dataclass(frozen=True)
class Joined:
    """Answers of two versions to the same requests; `refused` counts 4xx of the candidate where stable answered 200."""

    pairs: tuple[AnswerPair, ...]
    refused: int


def join_answers(samples: Iterable[Sample], *, stable: str, candidate: str) -> Joined:
    """Joins what clients got from the stable version with what the candidate answered in its shadow.

    Where a request id comes twice, the last answer counts.
    """
    seen: dict[str, Sample] = {}
    shadows: dict[str, Sample] = {}
    for sample in samples:
        if sample.version == stable and not sample.is_shadow and sample.status == OK and sample.label is not None:
            seen[sample.request_id] = sample
        elif sample.version == candidate and sample.is_shadow:
            shadows[sample.request_id] = sample
    both = [(seen[name], shadow) for name, shadow in shadows.items() if name in seen]
    pairs = tuple(
        AnswerPair(old.request_id, old, new) for old, new in both if new.status == OK and new.label is not None
    )
    return Joined(pairs, refused=sum(400 <= new.status < 500 for _, new in both))


def pair_answers(samples: Iterable[Sample], *, stable: str, candidate: str) -> tuple[AnswerPair, ...]:
    """Returns the requests that both versions answered with 200."""
    return join_answers(samples, stable=stable, candidate=candidate).pairs


def _probability_of(label: str, sample: Sample) -> float:
    if sample.probabilities is not None and label in sample.probabilities:
        return sample.probabilities[label]
    return sample.probability if sample.label == label and sample.probability is not None else 0.0
