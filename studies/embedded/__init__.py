"""How the embedded model's second version is made, and what plain GRPO does to it: docs/embedded-model.md."""
