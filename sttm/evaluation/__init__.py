"""How much accuracy a reducer keeps: questions with known answers, asked of full and of reduced videos.

questions (built-in, a table, or a public benchmark) ──► Evaluator, one video at a time ──► rows (Summary)
"""
