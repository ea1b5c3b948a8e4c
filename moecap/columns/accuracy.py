"""How right the answers are."""

import pyarrow as pa

from moecap.columns.base import F64, FLAG, I32, I64, TEXT, Column

ACCURACY = (
    Column("accuracy", F64, "1", "Share of right answers, 0 to 1.", "lm-eval, the task's main metric"),
    Column("accuracy_stderr", F64, "1", "Standard error of `accuracy`.", "lm-eval"),
    Column("accuracy_n", I64, "1", "Questions asked."),
    Column("accuracy_metric", TEXT, "", "Name of the metric (and filter) of lm-eval."),
    Column("perplexity", F64, "1", "Of the task's texts, per word or byte as its metric says; lower is better."),
    Column("perplexity_stderr", F64, "1", "Standard error of `perplexity`, by lm-eval's bootstrap."),
    Column("accuracy_failed", I64, "1", "Questions without a response; they count as wrong."),
    Column("accuracy_empty", I64, "1", "Empty or blank answers; null of choices."),
    Column("accuracy_cut", I64, "1", "Answers as long as the limit of tokens, tokenized again; null of choices."),
    Column("accuracy_unparsed", I64, "1", "Answers in which the task's filter found none; null where it says nothing."),
)

#: Of an evaluation alone.
EVALUATION = (
    Column("metric", TEXT, "", "lm-eval's metric and, after the comma, its filter."),
    Column("accuracy_degenerate", I64, "1", "Wrong answers that are empty, blank or one character only."),
    Column("metrics", TEXT, "", "Every metric and filter that lm-eval gives, with its error, JSON."),
    Column("settings", TEXT, "", "What the evaluation was given, JSON."),
    Column("task_hash", TEXT, "", "Hash of the task's config and local data."),
    Column("lm_eval_version", TEXT, "", "Version of lm-eval."),
)

#: Of a question.
ANSWER = (
    Column("task", TEXT, "", "lm-eval's task; a group has several."),
    Column("doc_id", I32, "", "Index in the task's test split."),
    Column("prompt", TEXT, "", "What was asked."),
    Column("target", TEXT, "", "The right answer; for choices, its text."),
    Column("response", TEXT, "", "Text generated, or the choice found likeliest."),
    Column("loglikelihoods", pa.list_(F64), "", "Of each choice; null if text was generated."),
    Column("score", F64, "1", "The metric's value for this question."),
    Column("degenerate", FLAG, "", "Wrong, and empty, blank or one character repeated."),
    Column("failed", FLAG, "", "No response came; counts as wrong."),
    Column("cut", FLAG, "", "As long as the limit of tokens, tokenized again; null of choices."),
    Column("unparsed", FLAG, "", "The task's filter found no answer in it; null where it says nothing."),
    Column("doc", TEXT, "", "The question as the data have it, JSON; of those that a judge reads."),
)
