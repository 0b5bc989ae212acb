"""`distgnn doctor`: checks what a run needs before it starts, and says what to do about each failure."""

from distgnn.doctor.examination import examine, run_doctor

__all__ = ["examine", "run_doctor"]
