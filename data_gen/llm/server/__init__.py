from data_gen.llm.server.serving import SimulatedServer as SimulatedServer
from data_gen.llm.server.serving import run_server as run_server
