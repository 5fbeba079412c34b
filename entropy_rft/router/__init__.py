"""The adaptive-inference router: it speaks OpenAI's and Anthropic's protocols and chooses a strategy for each question.

`settings` defines the settings, `policy` decides and rewrites, `features` asks the probe, `pool` and `proxy` find
a backend, `relay` passes its answer on, `app` is the HTTP side. Nothing here imports torch before a probe or a model is
loaded.
"""
