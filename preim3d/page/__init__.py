"""The page's own parts: its widgets and what it keeps of a session. The only rooms beside app.py that know Gradio."""
