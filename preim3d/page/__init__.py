"""The page's rooms, the only ones beside app.py that know Gradio; app.py lays the page out and wires them.

visitor.py    what is kept of one session: a latent, edits, a few pictures, files
gpu.py        what runs on the GPU, where there is one
verdict.py    what an edit did, in words and figures
reproduce.py  the shown head again, with Python or from the command line
examples.py   heads to look at before any upload
showing.py    what stands on the page because of a session's state
answers.py    what each event does
api.py        three endpoints for programs
widgets.py    the turning viewer, the choice of a face and the list of edits, in HTML; looks
"""
