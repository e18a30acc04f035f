package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.StringWriter;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Tests that the samples of the README compile unchanged, with its dependencies. */
class ReadmeTest {
  private static final Pattern FILE = Pattern.compile("`src/main/java/(\\w+)\\.java`:\n\n```java\n(.*?)```", Pattern.DOTALL);
  private static final Pattern JAVA = Pattern.compile("```java\n");
  private static final Pattern DEPENDENCY =
      Pattern.compile("<groupId>([^<]+)</groupId>\\s*<artifactId>([^<]+)</artifactId>\\s*<version>([^<]+)</version>");

  private static String read(String file) throws IOException {
    return Files.readString(Path.of(file));
  }

  @Test
  void readmeSamplesCompileUnchanged(@TempDir Path classes) throws IOException {
    String readme = read("README.md");
    List<JavaFileObject> sources = FILE.matcher(readme).results().map(found -> source(found.group(1), found.group(2))).toList();
    assertEquals(JAVA.matcher(readme).results().count(), sources.size(), "each sample is a file");
    var problems = new StringWriter();
    var options = List.of("-d", classes.toString(), "-proc:none");
    boolean isCompiled = ToolProvider.getSystemJavaCompiler().getTask(problems, null, null, options, null, sources).call();
    assertTrue(isCompiled, problems.toString());
  }

  @Test
  void readmeDependenciesHaveTheTestedVersions() throws IOException {
    String pom = read("pom.xml");
    var named = DEPENDENCY.matcher(read("README.md")).results().collect(Collectors.toMap(found -> found.group(2), found -> found.group(3)));
    assertEquals(property(pom, "fabric8.version"), named.get("kubernetes-client"));
    var own = DEPENDENCY.matcher(pom).results().findFirst().orElseThrow();
    assertEquals(own.group(3), named.get(own.group(2)));
  }

  private static String property(String pom, String name) {
    var found = Pattern.compile("<" + Pattern.quote(name) + ">([^<]+)<").matcher(pom);
    assertTrue(found.find());
    return found.group(1);
  }

  private static JavaFileObject source(String name, String content) {
    return new SimpleJavaFileObject(URI.create("string:///" + name + ".java"), JavaFileObject.Kind.SOURCE) {
      @Override
      public CharSequence getCharContent(boolean ignoresErrors) {
        return content;
      }
    };
  }
}
