"""Minutes of things going wrong: ``make stress ARGS=10``. What is tried, and how to repeat it: docs/testing.md."""
