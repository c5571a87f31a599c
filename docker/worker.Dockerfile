# The worker, torch and all. PyPI's torch is the CUDA build: with an NVIDIA driver and container toolkit it computes on
# the GPU, without them on the CPU. For a smaller image of the CPU alone:
#   --build-arg PIP_INDEX=https://download.pytorch.org/whl/cpu
# PIP_FIND_LINKS: a folder of wheels to look into first, mounted while building.
FROM python:3.11-slim AS build
ARG PIP_INDEX=""
ARG PIP_FIND_LINKS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# What it depends on is a layer of its own, which a change of the code leaves as it is.
RUN mkdir models service worker && touch models/__init__.py service/__init__.py worker/__init__.py \
  && python -m venv /venv \
  && /venv/bin/pip install --no-cache-dir -c constraints.txt \
    ${PIP_INDEX:+--index-url "$PIP_INDEX" --extra-index-url https://pypi.org/simple} '.[worker,postgres,s3]'
COPY models models
COPY service service
COPY worker worker
RUN /venv/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home winnow && install -d -o winnow /data /gpus
COPY --from=build /venv /venv
USER 10001
ENV PATH=/venv/bin:$PATH WINNOW_HOME=/data WINNOW_ALIVE_FILE=/tmp/alive PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
# The worker touches the file every second.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["sh", "-c", "find /tmp/alive -newermt '-15 seconds' | grep -q ."]
CMD ["python", "-m", "worker"]
