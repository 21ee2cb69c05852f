"""What must hold for a setting to be read: named by the fields of the sections, checked before a stage begins."""

from deepintuit.config.fields import Need

OBSERVATION = Need(
    "prompt.grammar",
    lambda c: "observation" in c.prompt.grammar,
    "that grammar has no observation to ask for or reward",
    "prompt.grammar=observation-think-answer",
)
QUICK = Need(
    "prompt.grammar",
    lambda c: c.prompt.grammar.startswith("answer-"),
    "that grammar has no quick answer to reward",
    "prompt.grammar=answer-think-answer",
)
PROCESS = Need("grpo.process", lambda c: c.grpo.process != "off", "seeing earns nothing there", "grpo.process=separate")
BONUS = Need(
    "grpo.length_bonus", lambda c: c.grpo.length_bonus > 0, "no length earns anything", "grpo.length_bonus=0.2"
)
SOFTMAX = Need(
    "grpo.objective",
    lambda c: c.grpo.objective == "softmax_weighted",
    "that objective has no weights of rewards",
    "grpo.objective=softmax_weighted",
)
REFILLS = Need(
    "grpo.dynamic_sampling", lambda c: c.grpo.dynamic_sampling, "no round is filled up", "grpo.dynamic_sampling=true"
)
ADAPTER = Need("model.lora_rank", lambda c: c.model.lora_rank > 0, "there is no adapter", "model.lora_rank=64")
GATE = Need("gate.by", lambda c: c.gate.by != "off", "nothing is compared with it", "gate.by=confidence")
OWN_WORDS = Need(
    "teach.source", lambda c: c.teach.source == "self", "only the local model is told the answer", "teach.source=self"
)
A_MODEL = Need(
    "teach.source", lambda c: c.teach.source != "homecam", "no model is sampled there", "teach.source=endpoint"
)
NEVER = Need(
    "", lambda c: False, "a round is followed by one update, whose ratio is 1, so that no bound is ever met", ""
)
