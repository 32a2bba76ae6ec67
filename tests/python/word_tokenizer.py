"""A tokenizer made on the spot: four tokens with a meaning of their own, then the words w4, w5, ..."""

from __future__ import annotations

NAMED = ["<pad>", "<unk>", "<eos>", "<bos>"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def words(count):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*NAMED, *(f"w{i}" for i in range(len(NAMED), count))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {name[1:-1] + "_token": name for name in NAMED}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=TEMPLATE, model_input_names=["input_ids", "attention_mask"], **special
    )
