"""The jobs of both programs: the section of YAML files that a job's settings stand in -> where the job is declared.

One line adds a job; `--help` lists them in this order. Both programs stand here because a YAML file may have sections
of both. These are names only: a program imports its own.
"""

from __future__ import annotations

STUDENT_TRAINER = {
    "demo-city": "student_trainer.demo_city.job:JOB",
    "convert": "student_trainer.convert.job:JOB",
    "prepare": "student_trainer.prepare.job:JOB",
    "train": "student_trainer.train.job:JOB",
    "sample": "student_trainer.sample.job:JOB",
    "headroom": "student_trainer.headroom.job:JOB",
    "tune": "student_trainer.tune.job:JOB",
    "predict": "student_trainer.predict.job:PREDICT",
    "export-student": "student_trainer.predict.job:EXPORT",
    "generate": "student_trainer.generate.job:JOB",
    "evaluate": "student_trainer.evaluate.job:JOB",
    "compare": "student_trainer.compare.job:JOB",
    "report": "student_trainer.report.job:REPORT",
    "bundle": "student_trainer.report.job:BUNDLE",
    "pipeline": "student_trainer.pipeline.job:JOB",
}

TEACHER_SERVER = {
    "export": "teacher_server.lmtad.job:JOB",
    "pretrain": "teacher_server.pretrain.job:JOB",
    "serve": "teacher_server.serve.job:JOB",
    "answer": "teacher_server.offline.job:JOB",
    "info": "teacher_server.client.job:INFO",
    "query": "teacher_server.client.job:QUERY",
}
