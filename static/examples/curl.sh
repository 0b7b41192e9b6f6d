#!/bin/sh
# Who is there, and a wave to all of them, whatever they speak.
curl -s http://localhost:8000/v1/channels/lobby/presence/count
curl -s http://localhost:8000/v1/channels/lobby/presence
curl -s -X POST http://localhost:8000/realtime/v1/api/broadcast -H 'content-type: application/json' \
  -d '{"messages":[{"topic":"lobby","event":"wave","payload":{"name":"The backend"}}]}'
