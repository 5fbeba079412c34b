"""The adaptive-inference router: a server of OpenAI's protocol that chooses a strategy for each question.

`settings` defines the settings, `policy` decides and rewrites, `features` asks the probe, `pool` and `proxy` find
a backend, `relay` passes its answer on, `app` is the HTTP side. Nothing here imports torch before a probe or a model is
loaded.
"""
