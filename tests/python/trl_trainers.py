"""TRL's trainers that compute with `liger_kernel.chunked_loss`: the same steps with and without it. `make test-trl` runs this on
the releases that other packages pin; later ones have a head of their own.

Both runs start from the same weights, see the same batches and sample the same completions. Every loss of a micro-batch and all
gradients of every optimizer step have to agree.
"""

from __future__ import annotations

import collections
import importlib
import math
import os
from dataclasses import dataclass, field

import pytest
import tiny_llama
import torch
from torch.nn.modules.module import register_module_forward_hook
from word_tokenizer import words

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

transformers = pytest.importorskip("transformers", reason="needs transformers")
trl = pytest.importorskip("trl", reason="needs trl")
datasets = pytest.importorskip("datasets", reason="needs datasets")

from packaging.version import Version  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

RELEASE = Version(trl.__version__)
OLD = RELEASE < Version("1.0")
if RELEASE >= Version("1.13"):
    pytest.skip(f"trl {RELEASE} does not compute with liger_kernel.chunked_loss", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("unpatched")

STEPS, LENGTH, RATE, BETA = 3, 24, 0.05, 0.3
LATER = {"cispo", "sapo", "vespo", "use_bias_correction_kl"}  # than 0.24
METRICS = ("rewards/", "logps/", "kl")  # not the means of logits: of all tokens here, of TRL's own choice there

PAIRS = [
    {"prompt": "w5 w6 w7 ", "chosen": "w8 w9 w10 w11", "rejected": "w20 w21"},
    {"prompt": "w30 ", "chosen": "w31 w32", "rejected": "w33 w34 w35 w36 w37"},
    {"prompt": "w40 w41 ", "chosen": "w42", "rejected": "w43 w44 w45"},
    {"prompt": "w50 w51 w52 w53 ", "chosen": "w54 w55 w56 w57 w58 w59", "rejected": "w60"},
]
ANSWERS = [
    {"prompt": pair["prompt"], "completion": pair[kind], "label": kind == "chosen"}
    for pair in PAIRS
    for kind in ("chosen", "rejected")
]
# Prompts of one length: TRL 0.24 cuts a whole batch of logits where its longest prompt ends.
CHATS = [
    {"messages": [{"role": "user", "content": f"w{i} w{i + 1}"}, {"role": "assistant", "content": answer}]}
    for i, answer in ((5, "w8 w9 w10 w11"), (30, "w31 w32"), (40, "w43 w44 w45"), (50, "w54"))
]


# ---- a few steps of a trainer ------------------------------------------------------------------------------------------


def classes_of(name):
    """The trainer and its config: in TRL's main module, in a module of experiments, or not there."""
    for home in ("trl", f"trl.experimental.{name.lower()}"):
        try:
            module = importlib.import_module(home)
            return getattr(module, f"{name}Trainer"), getattr(module, f"{name}Config")
        except (ImportError, AttributeError):
            continue
    pytest.skip(f"trl {RELEASE} has no {name}Trainer")


def knows(config_class, options):
    """Whether this release has the options, and the type of loss."""
    fields = config_class.__dataclass_fields__
    missing = [name for name in options if name not in fields]
    if options.get("loss_type", "") not in str(fields["loss_type"].metadata.get("help", "")):
        missing.append(options["loss_type"])
    if missing:
        assert OLD and set(missing) <= LATER, f"trl {RELEASE} has no {missing}, which it is known to have"
        pytest.skip(f"trl {RELEASE} has no {missing}")


@dataclass
class Steps:
    losses: list[float] = field(default_factory=list)  # of each micro-batch
    gradients: list[torch.Tensor] = field(default_factory=list)  # of each optimizer step: of all parameters
    metrics: list[dict[str, float]] = field(default_factory=list)  # of each optimizer step: what comes from our loss
    sampled: list[str] = field(default_factory=list)
    modules: collections.Counter = field(default_factory=collections.Counter)  # the package's, by how often they ran


class Watch(TrainerCallback):
    """Keeps what happens in `trainer.train()`, with SGD, so that a step is as far off as its gradient."""

    def __init__(self):
        self.steps = Steps()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.gradients.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:  # not the summary at the end
            self.steps.metrics.append({name: value for name, value in logs.items() if name.startswith(METRICS)})

    def train(self, trainer):
        own = trainer.training_step

        def training_step(*args, **kwargs):
            loss = own(*args, **kwargs)
            self.steps.losses.append(loss.item())
            return loss

        def count(module, *_):
            if type(module).__module__.startswith("liger_kernel."):
                self.steps.modules[type(module).__name__] += 1

        trainer.add_callback(self)
        trainer.training_step = training_step
        hook = register_module_forward_hook(count)
        try:
            trainer.train()
        finally:
            hook.remove()
        return self.steps


def train(trainer_class, config_class, options, folder, use_liger, given):
    switches = {"use_liger_kernel": use_liger}
    if "use_liger_loss" in config_class.__dataclass_fields__:
        switches["use_liger_loss"] = use_liger
    arguments = config_class(
        output_dir=str(folder / "out"), per_device_train_batch_size=4, max_steps=STEPS, report_to="none", use_cpu=True,
        bf16=False, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, seed=7, max_grad_norm=0.0,
        logging_steps=1, optim="sgd", lr_scheduler_type="constant", **switches, **{"learning_rate": RATE, **options},
    )  # fmt: skip
    # from a folder, as some of the trainers read their reference model from where the model came from
    tiny_llama.build(pad_token_id=0, bos_token_id=3, eos_token_id=2).save_pretrained(folder / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    watch = Watch()
    trainer = trainer_class(model=model, args=arguments, processing_class=words(tiny_llama.VOCAB), **given(watch.steps))
    steps = watch.train(trainer)
    assert ("LigerRMSNorm" in repr(model)) == use_liger
    return steps


# ---- what has to agree -------------------------------------------------------------------------------------------------


def roundings():
    """How many follow each other from a weight of the first layer to the loss and back."""
    sizes = tiny_llama.SIZES
    hidden, head = sizes["hidden_size"], sizes["hidden_size"] // sizes["num_attention_heads"]
    attention = 2 * hidden + head + 2 * LENGTH
    of_layer = attention + 2 * hidden + sizes["intermediate_size"] + 2 * hidden  # the norms' sums too
    return 2 * (sizes["num_hidden_layers"] * of_layer + hidden + tiny_llama.VOCAB + LENGTH)


def assert_same(actual, expected):
    """In units of the last place, n roundings that know nothing of each other are √n off, and 4·√n hardly ever.

    An error e of a gradient moves the parameters by rate·e, and the next gradient by at most rate·λ·e with the largest
    curvature λ. Where rate·λ is over 2 descent itself diverges, so that of step k an error is at most 3^k times the first.
    """
    first = 4 * math.sqrt(roundings()) * 2**-24
    assert actual.sampled == expected.sampled
    assert len(actual.gradients) == len(expected.gradients) == STEPS
    largest = 0.0
    for k, (ours, theirs) in enumerate(zip(actual.gradients, expected.gradients, strict=True)):
        largest = max(largest, theirs.norm().item())
        assert (ours - theirs).norm().item() <= 3**k * first * largest, f"gradient of step {k}"
        assert ours.norm().item() == pytest.approx(theirs.norm().item(), abs=3**k * first * largest)
    for k, (ours, theirs) in enumerate(zip(actual.metrics, expected.metrics, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=3**k * first * (1 + abs(value))), f"{name} of step {k}"
    per_step = len(expected.losses) // STEPS
    for i, (ours, theirs) in enumerate(zip(actual.losses, expected.losses, strict=True)):
        assert ours == pytest.approx(theirs, abs=3 ** (i // per_step) * first * (1 + abs(theirs))), f"loss {i}"


def compare(name, loss_class, options, folder, own_path=None, **given):
    """Both runs; TRL's own is that of `own_path(trainer)` where its two paths have different losses. What `given` holds are
    functions of the run's Steps."""
    trainer_class, config_class = classes_of(name)
    knows(config_class, options)

    def arguments(steps):
        return {key: make(steps) for key, make in given.items()}

    plain_class = own_path(trainer_class) if own_path else trainer_class
    expected = train(plain_class, config_class, options, folder, False, given=arguments)
    actual = train(trainer_class, config_class, options, folder, True, given=arguments)
    assert not expected.modules
    assert actual.modules[loss_class] == len(actual.losses) >= STEPS == len(actual.metrics)
    assert_same(actual, expected)
    return actual


def rows(of):
    return lambda _steps: datasets.Dataset.from_list(of)


def other_model(**changes):
    return lambda _steps: tiny_llama.build(seed=1, **changes)


# ---- trainers ----------------------------------------------------------------------------------------------------------


# A squared loss is much steeper than the others.
@pytest.mark.parametrize(
    ("loss_type", "rate"),
    [("sigmoid", RATE), ("apo_zero", RATE), ("apo_down", RATE), ("sppo_hard", 1e-3), ("nca_pair", RATE)],
)
def test_dpo(tmp_path, loss_type, rate):
    options = dict(beta=BETA, loss_type=loss_type, max_length=LENGTH, learning_rate=rate)
    given = dict(train_dataset=rows(PAIRS), ref_model=other_model())
    compare("DPO", "LigerFusedLinearDPOLoss", options, tmp_path, **given)


def test_kto(tmp_path):
    given = dict(train_dataset=rows(ANSWERS), ref_model=other_model())
    compare("KTO", "LigerFusedLinearKTOLoss", dict(beta=BETA, max_length=LENGTH), tmp_path, **given)


POLICIES = [
    *(dict(loss_type=kind, beta=beta) for kind in ("grpo", "bnpo", "dr_grpo", "dapo") for beta in (0.0, 0.1)),
    *(dict(loss_type=kind, beta=0.1, gradient_accumulation_steps=2) for kind in ("bnpo", "dapo")),
    dict(loss_type="cispo", beta=0.1, epsilon_high=2.0),
    dict(loss_type="sapo", beta=0.1),
    dict(loss_type="vespo", beta=0.1),
    dict(loss_type="grpo", importance_sampling_level="sequence", beta=0.1),
    dict(loss_type="dapo", delta=1.5, beta=0.1),
    dict(loss_type="dapo", use_bias_correction_kl=True, beta=0.1),
]


@pytest.mark.parametrize("options", POLICIES, ids=lambda options: "-".join(map(str, options.values())))
def test_grpo(tmp_path, options):
    if OLD and not {"importance_sampling_level", "delta"}.isdisjoint(options):
        pytest.skip(f"trl {RELEASE} refuses level and delta with the package's loss")
    if OLD and "gradient_accumulation_steps" in options and options["loss_type"] == "dapo":
        pytest.skip(f"trl {RELEASE} divides by the tokens of one micro-batch in one of its paths, of all in the other")

    def sum_of_words(steps):
        def reward(completions, **kwargs):
            steps.sampled.extend(completions)
            return [sum(int(word[1:]) for word in text.split() if word[0] == "w") / 100 for text in completions]

        return reward

    options = dict(options, num_generations=2, max_completion_length=8, num_iterations=2, temperature=0.9)
    given = dict(train_dataset=rows([{"prompt": pair["prompt"]} for pair in PAIRS]), reward_funcs=sum_of_words)
    assert compare("GRPO", "LigerFusedLinearGRPOLoss", options, tmp_path, **given).sampled


def with_hard_loss(trainer_class):
    """TRL 0.24 leaves our loss's weights at their defaults, half of it cross entropy; its own path has no such half."""

    class WithHardLoss(trainer_class):
        @staticmethod
        def generalized_jsd_loss(student_logits, teacher_logits, labels=None, **options):
            soft = trainer_class.generalized_jsd_loss(student_logits, teacher_logits, labels=labels, **options)
            hard = torch.nn.functional.cross_entropy(student_logits.flatten(0, -2), labels.flatten())
            return 0.5 * soft + 0.5 * hard

    return WithHardLoss


# The share of batches that the student writes itself; its temperature is in one of TRL 0.24's paths only.
@pytest.mark.parametrize("on_policy", [0.0, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_gkd(tmp_path, beta, on_policy):
    if OLD and on_policy:
        pytest.skip(f"trl {RELEASE} lets a sampled batch's prompts count in one of its paths")
    options = dict(beta=beta, lmbda=on_policy, temperature=1.0, max_length=LENGTH, max_new_tokens=8)
    given = dict(train_dataset=rows(CHATS), teacher_model=other_model(hidden_size=48))
    own_path = with_hard_loss if OLD else None
    compare("GKD", "LigerFusedLinearJSDLoss", options, tmp_path, own_path, **given)
