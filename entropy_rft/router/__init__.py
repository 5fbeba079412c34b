"""The adaptive-inference router: OpenAI's protocol in, the right strategy for each question out.

`settings` says what there is to set, `policy` decides and rewrites, `features` asks the probe, `pool` and `proxy` find
a backend, `relay` passes its answer on, `app` is the HTTP side. Nothing here imports torch before a probe or a model is
loaded.
"""
