"""Tokenizer and chat template of the built-in model, and the packing of many questions behind one clip.

One sequence holds the prefix of the prompt once, and after it every question in a slot of fixed width:

    <|im_start|>user\\n<|vision_start|> video <|vision_end|> | question 0, answer 0, pad | question 1, ...

A question sees the prefix and itself, but not the other questions, and its positions continue at the end of the prefix.
So it sees exactly the prompt that the chat template renders for this question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sttm.synthetic.questions import Question, questions
from sttm.synthetic.scene import sample_scenes
from sttm.synthetic.vocabulary import COLOURS, DIRECTIONS, GLYPHS, SHAPES

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREFIX, AFTER_QUESTION, END = "<|im_start|>user\n<|vision_start|>", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
SLOT_TOKENS = 20
ANSWER_TOKENS = 2
"""An answer has one token, followed by the end of the turn."""

_CORPUS_SEED = 999_999_999


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level BPE in which every word of the questions is one token. Any other text becomes bytes."""
    answers = [*COLOURS, *SHAPES, *DIRECTIONS, *GLYPHS, "yes", "no", "none", "nowhere", "above", "below"]
    texts = [q.text for scene in sample_scenes(_CORPUS_SEED, 3000, size=392) for q in questions(scene)]
    roles = ["user\n", "assistant\n", "system\n", "You are a helpful assistant.", "the video frame of a colored color"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(sorted(set(texts)) + (answers + roles) * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[2],
        pad_token=SPECIAL_TOKENS[0],
        model_max_length=32768,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@dataclass(frozen=True)
class PackedQuestions:
    """The questions about B clips, Q questions for each clip.

    Attributes:
        tokens: int64 [B, Q, SLOT_TOKENS], token ids, padded at the end.
        answer_at: int64 [B, Q, ANSWER_TOKENS], offsets in the slot at which the *next* token is learned.
        answer: int64 [B, Q, ANSWER_TOKENS], these next tokens.
        task: int64 [B, Q], index of the task in `TASKS`.
    """

    tokens: torch.Tensor
    answer_at: torch.Tensor
    answer: torch.Tensor
    task: torch.Tensor


class QuestionPacker:
    """Turns questions into slots. It caches the token ids of questions that it has seen.

    Args:
        tokenizer: the tokenizer of the model.
        tasks: names of the tasks, in the order of their numbers.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[str]) -> None:
        self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self._known: dict[tuple[str, str], tuple[list[int], int]] = {}
        self._tasks = list(tasks)
        self._pad = tokenizer.pad_token_id
        self._end = self._encode(END)
        self._after = self._encode(AFTER_QUESTION)
        self.prefix = self._encode(PREFIX)
        self.prefix_end = self._encode("<|vision_end|>")

    def slot(self, question: Question) -> tuple[list[int], int]:
        """The token ids of a question and its answer, padded to SLOT_TOKENS, and the offset of the answer's token.

        Raises:
            ValueError: question and answer are longer than a slot, or the answer has more than one token.
        """
        key = (question.text, question.answer)
        if key not in self._known:
            asked = self._encode(question.text) + self._after
            ids = asked + self._encode(question.answer) + self._end
            if len(ids) > SLOT_TOKENS or len(ids) - len(asked) != ANSWER_TOKENS:
                raise ValueError(
                    f"{key} has {len(ids)} tokens; a slot holds {SLOT_TOKENS} tokens and an answer of one token"
                )
            self._known[key] = (ids + [self._pad] * (SLOT_TOKENS - len(ids)), len(asked))
        return self._known[key]

    def pack(self, asked: Sequence[Sequence[Question]]) -> PackedQuestions:
        """Pack the questions of each clip. All clips must have the same number of questions."""
        slots = [[self.slot(q) for q in row] for row in asked]
        tokens = torch.tensor([[ids for ids, _ in row] for row in slots])
        at = torch.tensor([[[at - 1, at] for _, at in row] for row in slots])
        task = torch.tensor([[self._tasks.index(q.task) for q in row] for row in asked])
        return PackedQuestions(tokens, at, tokens.gather(2, at + 1), task)
