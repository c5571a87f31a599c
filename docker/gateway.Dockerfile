# The gateway: no torch in it.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# What it depends on is a layer of its own, which a change of the code leaves as it is.
RUN mkdir models service worker && touch models/__init__.py service/__init__.py worker/__init__.py \
  && python -m venv /venv && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[gateway,postgres,s3]'
COPY models models
COPY service service
RUN /venv/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home winnow && install -d -o winnow /data
COPY --from=build /venv /venv
USER 10001
ENV PATH=/venv/bin:$PATH WINNOW_HOME=/data WINNOW_HOST=0.0.0.0 WINNOW_PORT=8080 PYTHONUNBUFFERED=1
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
# Waits for the database, migrates it and makes the admin key before the gateway listens; all of it is safe to repeat.
CMD ["sh", "-c", "python -m service.prepare && exec python -m service"]
