"""Judges the counter's file from count FIRST on, as JSON: counter_check.py FILE FIRST"""
import json
import sys

rows = []
with open(sys.argv[1]) as lines:
    for line in lines:
        if line.endswith("\n"):
            count, wall, mono, token, pid = line.split()
            rows.append((int(count), float(wall), float(mono), token, int(pid)))
first = int(sys.argv[2])
errors = []
gaps = []
for a, b in zip(rows, rows[1:]):
    if b[0] != a[0] + 1:
        errors.append(f"count {b[0]} follows {a[0]}")
    if b[3:] != a[3:]:
        errors.append(f"at count {b[0]} the program is another one")
    if b[2] <= a[2]:
        errors.append(f"at count {b[0]} the monotonic clock went back by {a[2] - b[2]:.3f} s")
    if b[1] < a[1]:
        errors.append(f"at count {b[0]} the wall clock went back by {a[1] - b[1]:.3f} s")
    if b[0] > first:
        gaps.append((b[1] - a[1], b[2] - a[2], b[0]))
gaps.sort(reverse=True)
print(json.dumps({
    "last": rows[-1][0] if rows else 0,
    "gaps": [{"wall": w, "mono": m, "count": c} for w, m, c in gaps[:3]],
    "errors": errors[:10],
}))
