"""Answers to open questions, as a judge compared them with a baseline's."""

from moecap.columns.base import F64, I16, I64, TEXT, Column

JUDGED = (
    Column("by_question", F64, "1", "The win rate, with an interval by bootstrap rounds that draw whole questions."),
    Column("style_controlled", F64, "1", "Win rate against the baseline at equal length and markup."),
    Column("answer_tokens", F64, "1", "Mean length of the deployment's answers in tokens, by its own tokenizer."),
    Column("baseline_tokens", F64, "1", "Mean length of the baseline's answers in tokens, by the same tokenizer."),
    Column("battles", I64, "1", "Battles that the win rate is fitted to; a strong verdict is several."),
    Column("games_verdict", I64, "1", "Games with a verdict; a question has two, one in each order."),
    Column("games_missing", I64, "1", "Games whose judgment has no label."),
    Column("games_unknown", I64, "1", "Games whose label is none of the five."),
    Column("games_contradictory", I64, "1", "Games whose judgment has several labels."),
    Column("games_cut", I64, "1", "Games whose judgment reached the limit of tokens."),
    Column("games_refused", I64, "1", "Games that the judge refused."),
    Column("rate_limited", I64, "1", "Times that the judge answered 429 in this run."),
    Column("judge_prompt_tokens", I64, "1", "As the judge counted; null: it does not say."),
    Column("judge_output_tokens", I64, "1", "As the judge counted; null: it does not say."),
    Column("judge_usd", F64, "USD", "Cost of all judgments that count here, also of those kept from before."),
    Column("judge_usd_at_most", F64, "USD", "Estimated before judging: every judgment at its limit of tokens."),
    Column("judge", TEXT, "", "Model, address, temperature and limit of the judge, JSON."),
    Column("baseline", TEXT, "", "The model whose answers are compared with, and the hash of their file."),
    Column("prompts", TEXT, "", "Whose prompts the judge got, and the text of both, JSON."),
    Column("note", TEXT, "", "Why there is no score."),
)

#: Of a game: two answers to a question in one order.
GAME = (
    Column("question", TEXT, "", "Id of the question."),
    Column("order", I16, "", "0: the baseline's answer was shown first, 1: the deployment's."),
    Column("winner", TEXT, "", "The verdict: A>>B, A>B, A=B, B>A or B>>A; null: none."),
    Column("outcome", TEXT, "", "verdict, missing, unknown, contradictory, cut or refused."),
    Column("judgment", TEXT, "", "What the judge wrote."),
    Column("asked_tokens", I64, "1", "Length of what the judge was asked, as it counted."),
    Column("judgment_tokens", I64, "1", "Length of the judgment, as the judge counted."),
)
