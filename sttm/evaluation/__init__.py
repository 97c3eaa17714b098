"""How much accuracy a reducer keeps: questions with known answers are asked about full and about reduced videos.

questions (built-in, a table, or a public benchmark) ──► Evaluator, one video at a time ──► rows (Summary)
"""
