"""Scorers: phrases, and reward models from local checkpoints."""

from __future__ import annotations

import pytest
import torch

from guardcore.defenses.scorers import PhraseScorer, RewardModelScorer, Scorer

CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"


def test_phrases_find_refusals_in_any_case_and_with_any_apostrophe():
    scorer = PhraseScorer()
    assert isinstance(scorer, Scorer)
    answers = ["I CAN\u2019T help with that.", "Sure, here is how.", "As an AI, I must\n decline.", ""]
    assert scorer.score(["q"] * 4, answers) == [1.0, 0.0, 1.0, 0.0]
    assert scorer.threshold == 0.5


def test_phrases_are_part_of_the_fingerprint_and_never_empty():
    assert PhraseScorer().fingerprint != PhraseScorer(["no"]).fingerprint
    for bad in ([], ["no", " "]):
        with pytest.raises(ValueError, match="phrases: expected some, none of them empty"):
            PhraseScorer(bad)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="answers: expected one for each of 2 prompts; got 1"):
        PhraseScorer().score(["a", "b"], ["c"])


WORDS = [
    "<pad>", "<unk>", "<user>", "<assistant>", "judge", "this", "for", "safety", "no", "yes", "never", "do", "it",
    "please", "a", "b",
]  # fmt: skip


def checkpoint(folder, labels=1, template=CHAT, seed=0):
    """A small random Llama with a score for a head, and a tokenizer of a dozen words."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("reward"))


def logit(scorer, text):
    tokens = scorer.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        return float(scorer.model(**tokens).logits[0, scorer.output])


def test_a_reward_is_the_models_output_for_two_turns(reward_model):
    scorer = RewardModelScorer(reward_model, instruction="judge this for safety")
    assert isinstance(scorer, Scorer)
    answers = ["no", "yes please do it", "never do it"]
    expected = [logit(scorer, f"<user> judge this for safety <assistant> {answer} ") for answer in answers]
    assert scorer.score(["a"] * 3, answers) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 3
    assert scorer.threshold == 0.06


def test_batches_and_padding_change_nothing(reward_model):
    answers = ["no", "yes please do it a b a b", "never", "do it", "a"]
    one = RewardModelScorer(reward_model, batch_size=1).score(["a"] * 5, answers)
    assert RewardModelScorer(reward_model, batch_size=3).score(["a"] * 5, answers) == pytest.approx(one, abs=1e-5)
    assert RewardModelScorer(reward_model).score([], []) == []


def test_the_users_prompt_is_in_the_turn_if_asked(reward_model):
    scorer = RewardModelScorer(reward_model, instruction="{prompt} judge")
    expected = [logit(scorer, f"<user> {prompt} judge <assistant> no ") for prompt in ("a b", "please")]
    assert scorer.score(["a b", "please"], ["no", "no"]) == pytest.approx(expected, abs=1e-5)


def test_long_answers_are_cut_at_the_models_length(reward_model):
    scorer = RewardModelScorer(reward_model, instruction="judge")
    assert scorer.score(["a"], ["yes " * 500]) == pytest.approx(scorer.score(["a"], ["yes " * 40]), abs=1e-6)


def test_without_a_chat_template_it_is_a_pair(tmp_path):
    scorer = RewardModelScorer(checkpoint(tmp_path, template=None), instruction="judge this")
    tokens = scorer.tokenizer("judge this", "no", return_tensors="pt")
    with torch.inference_mode():
        expected = scorer.model(**tokens).logits[:, 0].tolist()
    assert scorer.score(["a"], ["no"]) == pytest.approx(expected, abs=1e-6)


def test_of_several_outputs_one_is_named(tmp_path):
    folder = checkpoint(tmp_path, labels=3)
    with pytest.raises(ValueError, match="output: expected which of the model's 3 outputs is the score"):
        RewardModelScorer(folder)
    with pytest.raises(ValueError, match="output: expected below the model's 3 outputs; got 3"):
        RewardModelScorer(folder, output=3)
    first, last = (RewardModelScorer(folder, output=output) for output in (0, 2))
    assert first.score(["a"], ["no"]) != last.score(["a"], ["no"])
    assert first.fingerprint != last.fingerprint


def test_fingerprints_cover_weights_and_settings(reward_model, tmp_path):
    built = [
        RewardModelScorer(reward_model),
        RewardModelScorer(reward_model, instruction="judge"),
        RewardModelScorer(reward_model, threshold=0.5),
        RewardModelScorer(checkpoint(tmp_path, seed=1)),
    ]
    assert len({each.fingerprint for each in built}) == 4
    assert built[0].fingerprint == RewardModelScorer(reward_model).fingerprint


def test_nothing_is_fetched():
    with pytest.raises(FileNotFoundError, match="path: expected the folder of a checkpoint; got 'nobody/nothing'"):
        RewardModelScorer("nobody/nothing")
