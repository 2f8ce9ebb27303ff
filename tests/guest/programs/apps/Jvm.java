import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.Selector;
import java.nio.channels.SelectionKey;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.lang.management.GarbageCollectorMXBean;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/** A server with many threads, timers, monitors and garbage; it answers lines over unix and TCP. */
public final class Jvm {
    static final AtomicLong ticks = new AtomicLong(), parks = new AtomicLong(), handed = new AtomicLong(), collected = new AtomicLong(), signals = new AtomicLong();
    static final Object monitor = new Object();
    static long turns;
    static final Map<Integer, String> kept = new HashMap<>();
    static final List<String> errors = new ArrayList<>();
    static final String token = Long.toHexString(new java.security.SecureRandom().nextLong());

    static void wrong(String text) {
        synchronized (errors) {
            errors.add(text);
        }
    }

    public static void main(String[] args) throws Exception {
        Thread.setDefaultUncaughtExceptionHandler((thread, error) -> wrong(thread.getName() + ": " + error));
        for (int n = 0; n < 100_000; n++) {
            kept.put(n, "value " + (long) n * n);
        }
        ScheduledExecutorService timers = Executors.newScheduledThreadPool(2);
        timers.scheduleWithFixedDelay(ticks::incrementAndGet, 0, Long.parseLong(args[2]), TimeUnit.MILLISECONDS);
        start("parker", Jvm::park);
        start("garbage", Jvm::garbage);
        ArrayBlockingQueue<Long> queue = new ArrayBlockingQueue<>(4);
        start("producer", () -> produce(queue));
        start("consumer", () -> consume(queue));
        for (int n = 0; n < 6; n++) {
            int me = n;
            start("turn " + n, () -> takeTurns(me));
        }
        sun.misc.Signal.handle(new sun.misc.Signal("USR2"), signal -> signals.incrementAndGet());
        ServerSocketChannel unix = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(UnixDomainSocketAddress.of(args[0]));
        ServerSocketChannel tcp = ServerSocketChannel.open().bind(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), Integer.parseInt(args[1])));
        start("unix", () -> accept(unix));
        select(tcp);
    }

    interface Work {
        void run() throws Exception;
    }

    static void start(String name, Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Exception error) {
                wrong(name + ": " + error);
            }
        }, name);
        thread.setDaemon(true);
        thread.start();
    }

    static void park() {
        while (true) {
            long begin = System.nanoTime();
            LockSupport.parkNanos(50_000_000);
            if (System.nanoTime() < begin) {
                wrong("nanoTime went back");
            }
            parks.incrementAndGet();
        }
    }

    /** Fills the young generation again and again, and looks at what must outlive it. */
    static void garbage() throws Exception {
        for (int round = 0; ; round++) {
            byte[][] junk = new byte[64][];
            for (int n = 0; n < junk.length; n++) {
                junk[n] = new byte[16 * 1024];
                junk[n][n] = (byte) n;
            }
            for (int n = 0; n < junk.length; n++) {
                if (junk[n][n] != (byte) n || junk[n][n + 1] != 0) {
                    wrong("junk " + n + " was written by somebody else");
                }
            }
            int key = (int) ((long) round * 7919 % 100_000);
            String value = "value " + (long) key * key;
            if (!value.equals(kept.get(key))) {
                wrong("key " + key + " is " + kept.get(key));
            }
            kept.put(key, value);
            collected.incrementAndGet();
            Thread.sleep(30);
        }
    }

    static void produce(ArrayBlockingQueue<Long> queue) throws Exception {
        for (long n = 0; ; n++) {
            queue.put(n);
            if (n % 4 == 0) {
                Thread.sleep(10);
            }
        }
    }

    static void consume(ArrayBlockingQueue<Long> queue) throws Exception {
        for (long due = 0; ; due++) {
            long got = queue.take();
            if (got != due) {
                wrong("number " + got + " instead of " + due);
                return;
            }
            handed.incrementAndGet();
        }
    }

    /** Six threads go round by wait and notifyAll. */
    static void takeTurns(int me) throws Exception {
        while (true) {
            synchronized (monitor) {
                while (turns % 6 != me) {
                    monitor.wait();
                }
                turns++;
                monitor.notifyAll();
            }
            Thread.sleep(20);
        }
    }

    static String answer(String line) {
        if (line.equals("gc")) {
            System.gc();
            return "done";
        }
        if (!line.equals("facts")) {
            return new StringBuilder(line).reverse().toString();
        }
        long collections = 0;
        for (GarbageCollectorMXBean bean : ManagementFactory.getGarbageCollectorMXBeans()) {
            collections += bean.getCollectionCount();
        }
        String wrong;
        synchronized (errors) {
            wrong = errors.isEmpty() ? "" : '"' + String.join("; ", errors).replace('"', '\'') + '"';
        }
        synchronized (monitor) {
            return String.format("{\"pid\": %d, \"token\": \"%s\", \"errors\": [%s], \"ticks\": %d, \"parks\": %d, \"handed\": %d, \"collected\": %d, \"turns\": %d, "
                + "\"signals\": %d, \"collections\": %d, \"threads\": %d, \"now\": %.3f}",
                ProcessHandle.current().pid(), token, wrong, ticks.get(), parks.get(), handed.get(), collected.get(), turns, signals.get(), collections,
                Thread.activeCount(), System.currentTimeMillis() / 1000.0);
        }
    }

    /** A thread for each connection to the unix socket. */
    static void accept(ServerSocketChannel server) throws Exception {
        while (true) {
            SocketChannel channel = server.accept();
            start("connection", () -> {
                BufferedReader in = new BufferedReader(new InputStreamReader(Channels.newInputStream(channel)));
                OutputStream out = Channels.newOutputStream(channel);
                for (String line; (line = in.readLine()) != null; ) {
                    out.write((answer(line) + "\n").getBytes(StandardCharsets.UTF_8));
                }
                channel.close();
            });
        }
    }

    /** One selector, which is an epoll, for all connections over TCP: a line each. */
    static void select(ServerSocketChannel server) throws Exception {
        Selector selector = Selector.open();
        server.configureBlocking(false);
        server.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel channel = server.accept();
                    channel.configureBlocking(false);
                    channel.register(selector, SelectionKey.OP_READ);
                    continue;
                }
                SocketChannel channel = (SocketChannel) key.channel();
                ByteBuffer buffer = ByteBuffer.allocate(4096);
                if (channel.read(buffer) > 0) {
                    String line = new String(buffer.array(), 0, buffer.position(), StandardCharsets.UTF_8).trim();
                    channel.write(ByteBuffer.wrap((answer(line) + "\n").getBytes(StandardCharsets.UTF_8)));
                } else {
                    channel.close();
                }
            }
            selector.selectedKeys().clear();
        }
    }
}
