# The server in a small image, not run by root. Build: docker build -t rollcall .
# Try it: compose.yaml next to this file.

ARG RUST_VERSION=1.95
FROM rust:${RUST_VERSION}-slim-bookworm AS build
WORKDIR /build

# Dependencies first, with an empty crate, so that a change in the source does not build them again.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src loadtest \
 && echo 'fn main() {}' > src/main.rs \
 && echo 'fn main() {}' > loadtest/load.rs \
 && touch src/lib.rs \
 && cargo build --release --locked \
 && rm -rf src loadtest

COPY . .
# Cargo goes by modification time, and the copied files may be older than the empty crate.
RUN touch src/main.rs src/lib.rs \
 && cargo build --release --locked --bin rollcall \
 && strip --strip-debug target/release/rollcall

FROM debian:bookworm-slim
RUN groupadd --gid 10001 rollcall \
 && useradd --uid 10001 --gid rollcall --no-create-home --shell /usr/sbin/nologin rollcall
COPY --from=build /build/target/release/rollcall /usr/local/bin/rollcall
USER 10001:10001

# In a container the server listens beyond loopback, so it must be told who may connect, and does not start
# otherwise: ROLLCALL_AUTH=session (with SERVICE_KEY, or JWT_SECRET) for the world, ROLLCALL_AUTH=open for
# trying out or behind something that lets only the right people through. There is no default on purpose.
ENV ROLLCALL_LISTEN=0.0.0.0:8000
EXPOSE 8000

# On SIGTERM it tells clients to reconnect elsewhere and is gone within 10 s.
STOPSIGNAL SIGTERM
# There is no curl in the image: bash speaks enough HTTP. The port is that of the (last) listen address.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${ROLLCALL_LISTEN##*:} && printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r -t 2 line <&3 && [[ $line == *' 200 '* ]]"]

ENTRYPOINT ["/usr/local/bin/rollcall"]
