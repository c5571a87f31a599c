# The worker: torch and all. On a machine with an NVIDIA driver and container toolkit it computes on the GPU.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY models models
COPY service service
COPY worker worker
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[worker]'

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home winnow && install -d -o winnow /data
COPY --from=build /venv /venv
USER winnow
ENV PATH=/venv/bin:$PATH WINNOW_HOME=/data PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
CMD ["python", "-m", "worker"]
