"""The dashboard: watch a clip being reasoned about, browse traces, find out where classes fail.

One file per page (`watch`, `traces`, `errors`, `runs`): plain functions for data on top, wiring in `page()` below.
`app` joins the pages and starts the server, `context` is what they share, `html` renders `templates/`, `prose` makes a
trace readable, `trace_view` draws one as it grows, `media` and `uploads` serve files by id. A request goes through
`deepintuit.connections` (how slow it may be), `outside` (under which name, how large), `gate` (the login) and `doors`
(what Gradio may be asked). No SQL in here: `deepintuit_analysis` has the queries. Nothing in here imports torch but
`live`, and that only when a model is first asked for.
"""
