# Serves the archives of a mounted model store; holds no model itself.
#
#   docker build -t imgcls .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/model_store:/models:ro" imgcls
#
# The tokens that TorchServe makes at each start: docker exec CONTAINER cat /var/lib/imgcls/serve/key_file.json

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements-serve.lock ./
RUN python -m venv /opt/imgcls \
    && sed -n '/^uv==/,/^ *# via/p' requirements-serve.lock > uv.lock \
    && /opt/imgcls/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r uv.lock \
    && /opt/imgcls/bin/uv pip sync --no-cache --compile-bytecode --python /opt/imgcls/bin/python --require-hashes requirements-serve.lock
COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY handler handler
COPY imgcls imgcls
RUN /opt/imgcls/bin/uv pip install --no-cache --compile-bytecode --python /opt/imgcls/bin/python --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/imgcls /opt/imgcls
# Inside its network namespace the inference API must listen on all addresses for -p to reach it; the management API and
# the metrics stay on loopback.
COPY config.properties /etc/imgcls/loopback.properties
RUN sed 's#^inference_address=.*#inference_address=http://0.0.0.0:8080#' /etc/imgcls/loopback.properties > /etc/imgcls/config.properties \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/imgcls imgcls \
    && mkdir /models
USER imgcls
WORKDIR /var/lib/imgcls
ENV PATH=/opt/imgcls/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
EXPOSE 8080
# Healthy when every worker is READY, which each is only after it has answered the archive's golden inputs right.
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 CMD ["imgcls", "status", "--state", "/var/lib/imgcls/serve"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["imgcls", "serve", "--foreground", "--ts-config", "/etc/imgcls/config.properties", "--state", "/var/lib/imgcls/serve"]
CMD ["/models/imgcls.mar"]
