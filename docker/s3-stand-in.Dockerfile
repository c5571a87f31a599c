# An S3 server for trying the cluster out where no other is to be had. It keeps everything in memory: for tests only.
FROM python:3.11-slim
COPY constraints.txt /
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -c /constraints.txt 'moto[s3]' flask flask-cors \
  && useradd --uid 10001 winnow
USER 10001
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 9000
COPY docker/s3_stand_in.py /
CMD ["python", "/s3_stand_in.py"]
