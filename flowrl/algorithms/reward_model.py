"""A reward model: the Bradley-Terry likelihood of preferences between two recorded answers (arXiv:2009.01325)."""

from flowrl.estimators.ratings import Ratings
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import BradleyTerry
from flowrl.parts.records import FirstPreferred, RatedPair
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.samplers.recorded import MakesNothing, Recorded

PAPER = "arXiv:2009.01325"


def reward_model(
    *,
    margin: str = "",
    centre: float = 0.0,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
) -> Algorithm:
    """As TRL 1.16's RewardTrainer: a linear head on the last token's state, in the place of the vocabulary layer.
    ``flowrl export`` writes the folder that the reward ``reward_model`` loads, which reads conversations as they were
    trained on.

    margin: a column of how much better the preferred answer is. centre: TRL's ``center_rewards_coefficient``; it names
    .01. length: of prompt and completion. Deviation: TRL adds an end token to a plain text, and that reward does not.
    """
    return Algorithm(
        sampler=Recorded(
            sampler=MakesNothing(length=length), columns=columns, ratings=ratings, margin=margin, test="recorded"
        ),
        estimator=Ratings(),
        advantage=FirstPreferred() if margin else RatedPair(),
        objective=BradleyTerry(margin=1.0 if margin else 0.0, centre=centre),
        selection=NonzeroAdvantage(),
        families=("reward",),
    )
