"""What ``--loss_type`` may say, and what it means: names, weights, options, and errors."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rankwright.errors import ConfigError
from rankwright.losses import LOSSES
from rankwright.objective import Part, parse_objective


@pytest.mark.parametrize(
    ("text", "parts", "written"),
    [
        ("listwise", [Part("listwise")], "listwise"),
        ("listwise_reranker", [Part("listwise")], "listwise"),
        (
            " listwise + 0.1 * pointwise ",
            [Part("listwise"), Part("pointwise", 0.1)],
            "listwise+0.1*pointwise",
        ),
        ("2*kl+1e-3*ranknet", [Part("kl", 2.0), Part("ranknet", 1e-3)], "2*kl+0.001*ranknet"),
        (".5*kl", [Part("kl", 0.5)], "0.5*kl"),
        ("1.*kl+2e+1*listnet", [Part("kl"), Part("listnet", 20.0)], "kl+20*listnet"),
        ("kl()", [Part("kl")], "kl"),
        (
            "3*kl( temperature = 2, min_group_size=3,)+lambda_loss(ndcg_cutoff=5,sigma=0.5)",
            [
                Part("kl", 3.0, {"temperature": 2.0, "min_group_size": 3}),
                Part("lambda_loss", 1.0, {"ndcg_cutoff": 5, "sigma": 0.5}),
            ],
            "3*kl(temperature=2,min_group_size=3)+lambda_loss(ndcg_cutoff=5,sigma=0.5)",
        ),
    ],
)
def test_what_it_says(text: str, parts: list[Part], written: str) -> None:
    """Read, written in its shortest form, and read again."""
    found = parse_objective(text)
    assert list(found.parts) == parts
    assert str(found) == written
    assert parse_objective(written) == found


PLAIN = "write a loss, or losses joined by + with a weight before each, such as listwise+0.1*pointw"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"--loss_type '' cannot be read at its end; {PLAIN}"),
        ("listwise+", f"--loss_type 'listwise+' cannot be read at its end; {PLAIN}"),
        ("+listwise", f"--loss_type '+listwise' cannot be read at '+listwise'; {PLAIN}"),
        ("listwise*0.1", f"cannot be read at '*0.1'; {PLAIN}"),
        ("listwise-kl", "--loss_type 'listwise-kl' is unknown; "),
        ("listwise kl", f"cannot be read at 'kl'; {PLAIN}"),
        ("listwise+0.1**kl", "--loss_type '0.1' is unknown; choose from pointwise, "),
        ("kl(temperature=2", f"cannot be read at '(temperature=2'; {PLAIN}"),
        ("kl((temperature=2))", f"cannot be read at '((temperature=2))'; {PLAIN}"),
        ("listwize+kl", "--loss_type 'listwize' is unknown; did you mean 'listwise'? Choose"),
        ("0*kl", "--loss_type '0*kl': the weight 0 is not above 0"),
        ("listwise+-1*kl", "--loss_type 'listwise+-1*kl': the weight -1 is not above 0"),
        ("1e999*kl", "--loss_type '1e999*kl': the weight 1e999 is not above 0"),
        ("kl+2*kl", "--loss_type 'kl+2*kl' names kl twice; give it once, with one weight"),
        # an alias is the loss it means
        ("pointwise+generative_reranker", "names pointwise twice; give it once, with one weight"),
        (
            "kl(sigma=2)",
            "--loss_type 'kl(sigma=2)': kl has no option 'sigma'; it has temperature, "
            "teacher_temperature, min_group_size",
        ),
        ("listmle(k=1)", "--loss_type 'listmle(k=1)': listmle has no option 'k'; it has none"),
        ("kl(temperature)", "--loss_type 'kl(temperature)': temperature='' is not a number"),
        ("kl(temperature=hot)", "kl(temperature=hot)': temperature='hot' is not a number"),
        ("kl(min_group_size=2.5)", "min_group_size='2.5' is not a whole number"),
        ("kl(temperature=0)", "kl(temperature=0)': temperature 0 is not a number above 0"),
        ("kl(temperature=nan)", "kl(temperature=nan)': temperature nan is not a number above 0"),
        ("lambda_loss(lambda_mu=-1)", "lambda_mu -1 is not a number above 0 or equal to it"),
        ("lambda_loss(ndcg_cutoff=0)", "ndcg_cutoff 0 is less than 1"),
    ],
)
def test_what_it_cannot_say(text: str, message: str) -> None:
    """One line that says what came and what may stand there."""
    with pytest.raises(ConfigError) as caught:
        parse_objective(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_given_twice() -> None:
    with pytest.raises(ConfigError, match="gives temperature twice; give it once"):
        parse_objective("kl(temperature=1,temperature=2)")


def test_options_of_a_part_stand_above_the_arguments() -> None:
    objective = parse_objective("kl(temperature=3)+listwise").with_options(
        {"temperature": 0.5, "teacher_temperature": None, "min_group_size": 2}
    )
    kl, listwise = (dict(part.options) for part in objective.parts)
    assert kl == {"temperature": 3.0, "teacher_temperature": None, "min_group_size": 2}
    assert listwise == {"temperature": 0.5, "min_group_size": 2}


def test_value_is_the_weighted_sum_of_means() -> None:
    """Of each part over its own terms; one without any term counts 0.

    Two groups, of which the second has no positive: listwise has one term, pointwise five. Equal
    scores: log 3 and log 2. ranknet has two pairs of log 2 each.
    """
    labels_P, offsets_Q = torch.tensor([1.0, 0, 0, 0, 0]), torch.tensor([0, 3, 5])
    objective = parse_objective("listwise+0.1*pointwise+4*ranknet")
    sums = objective(torch.zeros(5, dtype=torch.float64), labels_P, offsets_Q)
    assert sums.counts_N.tolist() == [1, 5, 2]
    means_N = objective.means(*sums)
    log2, log3 = torch.tensor([2.0, 3.0], dtype=torch.float64).log()
    assert_close(means_N, torch.stack([log3, log2, log2]))
    assert_close(objective.weighted(means_N), log3 + 4.1 * log2)
    none = objective(torch.zeros(2, dtype=torch.float64), labels_P[3:], torch.tensor([0, 2]))
    assert_close(objective.weighted(objective.means(*none)), 0.1 * log2)


def test_what_the_parts_need_together() -> None:
    """A group is used where one part can use it."""
    assert [parse_objective(name).needs for name in LOSSES] == [x.needs for x in LOSSES.values()]
    assert parse_objective("listwise+pointwise").needs == "one"
    assert parse_objective("listwise+kl").needs == "two"
    assert parse_objective("listwise+ranknet").needs == "both"
    assert parse_objective("listwise+kl").teacher
    assert not parse_objective("listwise+ranknet").teacher
    assert parse_objective("listwise+pointwise").probability_labels == ("pointwise",)
