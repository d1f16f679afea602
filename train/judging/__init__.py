"""What edits and heads are judged by: the reader that is trained for it, the paper's metrics, people's votes."""
