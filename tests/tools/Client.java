// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

import java.io.RandomAccessFile;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;

/** Reads registers by way of native code in several threads, and has bus errors of its own, which the JVM makes errors of. */
public class Client {
    static native void map();

    static native int read();

    public static void main(String[] arguments) throws Exception {
        System.loadLibrary("client");
        map();
        Thread[] threads = new Thread[4];
        for (int n = 0; n < threads.length; n++) {
            threads[n] = new Thread(() -> {
                for (int round = 0; round < 2000; round++) {
                    if (read() != 0x32) {
                        System.out.println("a register has another value");
                        System.exit(1);
                    }
                }
            });
            threads[n].start();
        }
        int errors = 0;
        for (int round = 0; round < 10; round++) {
            Path path = Files.createTempFile("java", "");
            try (RandomAccessFile file = new RandomAccessFile(path.toFile(), "rw")) {
                file.setLength(8192);
                MappedByteBuffer beyond = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 8192);
                file.setLength(0);
                beyond.get(5000);
            } catch (InternalError error) {
                errors++;
            }
            Files.delete(path);
        }
        for (Thread thread : threads) {
            thread.join();
        }
        if (errors != 10 || read() != 0x32) {
            System.out.println("of 10 bus errors of its own there were " + errors);
            System.exit(1);
        }
        System.out.println("done");
    }
}
